package test

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// An exit that all of the internet goes by, the coordinator, the relay and the exit itself among it, as they are for
// any machine at home: what carries the tunnel must not go into it, or there is none.
//
//	alice, --tun, a /32 and nothing but a default route ─── switch, "the internet" ─┬─ hub, relay
//	                                                                                └─ exit ── web
func TestExitByInterface(t *testing.T) {
	if testing.Short() {
		t.Skip("a whole mesh takes half a minute")
	}
	private := lab.Subnet
	lab.Subnet = pfx("198.51.100.0/24")
	t.Cleanup(func() { lab.Subnet = private })
	m := bare(t)
	m.hub, m.relay, m.alice = m.lab.Host("hub"), m.lab.Host("relay"), m.lab.Host("alice")
	exit, web := m.lab.Host("exit"), m.lab.LAN("web", pfx("203.0.113.5/24"))
	exit.Join(web, pfx("203.0.113.1/24"))
	r := &routeMesh{mesh: m, exit: exit, web: web}
	r.serveAt(web, "203.0.113.5:80")
	r.serveAt(m.hub, m.hub.Addr.String()+":80")
	at := m.alice.Addr.String()
	if err := m.alice.IP("addr del "+at+"/24 dev eth0", "addr add "+at+"/32 dev eth0", "route add default dev eth0"); err != nil {
		t.Fatal(err)
	}
	m.writePolicy(`{"tagOwners": {"tag:exit": []}, "autoApprovers": {"exitNode": ["tag:exit"]},
		"acls": [{"action": "accept", "src": ["alice@lab"], "dst": ["autogroup:internet:*"]}]}`)
	m.startServers()
	m.must(m.hub, "admin", "user", "create", "alice@lab")
	m.joinWith(exit, []string{"--advertise-exit"}, "--tag", "tag:exit")
	before := network(t, m.alice)
	m.joinWith(m.alice, []string{"--tun=on", "--exit-node", "exit"}, "--user", "alice@lab")
	answers := func(url, want string) {
		t.Helper()
		start := time.Now()
		defer func() { t.Logf("%s answers %s after %v", url, want, time.Since(start).Round(time.Millisecond)) }()
		r.eventually(20*time.Second, url+" answers "+want, func() error {
			out, err := m.plain(m.alice, url)
			if err == nil && !strings.Contains(out, want) {
				err = errors.New("it answers " + out)
			}
			return err
		})
	}
	answers("http://203.0.113.5/", "web answers 203.0.113.1:")
	answers("http://"+m.hub.Addr.String()+"/", "hub answers "+exit.Addr.String()+":") // programs' own go by the exit too
	m.pathIs("direct", m.alice, "exit")
	connected := func() error {
		out, _, err := m.hedge(m.alice, "status", "--json")
		if err == nil && !strings.Contains(out, `"connected": true`) {
			err = errors.New(out)
		}
		return err
	}
	// Both of them begin anew while the exit is in use: new connections stay beside the tunnel as the old did.
	m.stop(m.coordinator)
	m.startCoordinator()
	r.eventually(20*time.Second, "alice finds the coordinator again", connected)
	if out, err := m.hub.Command(t.Context(), "ss", "-Htn", "state", "established", "sport", "=", ":7443").CombinedOutput(); err != nil || !strings.Contains(string(out), at+"]:") {
		t.Errorf("no connection of alice's own is at the coordinator: %v\n%s", err, out)
	}
	exit.Firewall("udp dport != 53 drop", "udp sport != 53 drop") // the exit is reached by relay only
	answers("http://203.0.113.5/", "web answers")
	exit.Firewall()

	// A node that is killed leaves rules that lead nowhere: the host is as without it, and the next start removes them.
	if err := syscall.Kill(m.status(m.alice).PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	answers("http://"+m.hub.Addr.String()+"/", "hub answers "+at+":")
	r.eventually(10*time.Second, "it starts again", func() error { _, _, err := m.hedge(m.alice, "up"); return err })
	answers("http://203.0.113.5/", "web answers")
	m.must(m.alice, "down")
	if after := network(t, m.alice); after != before {
		t.Errorf("the host before\n%s\nand after\n%s", before, after)
	}
}

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

const policyTUN = `{
	"tagOwners": {"tag:web": []},
	"acls": [
		{"action": "accept", "src": ["alice@lab"], "dst": ["tag:web:80"]},
		{"action": "accept", "proto": "icmp", "src": ["alice@lab"], "dst": ["tag:web:*"]},
		{"action": "accept", "proto": "ipv6-icmp", "src": ["alice@lab"], "dst": ["tag:web:*"]},
	],
}`

// Two hosts with interfaces of their own: what programs that know nothing of Hedge see, and what is left of it after.
func TestTUN(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary")
	}
	m := bare(t)
	m.hub, m.relay = m.lab.Host("hub"), m.lab.Host("relay")
	m.alice, m.web = m.lab.Host("alice"), m.lab.Host("web")
	if out, err := m.alice.Command(t.Context(), "ip", "tuntap", "add", "probe0", "mode", "tun").CombinedOutput(); err != nil {
		t.Skipf("no TUN device can be made here: %s", out)
	}
	m.alice.Command(t.Context(), "ip", "tuntap", "del", "probe0", "mode", "tun").Run()
	m.writePolicy(policyTUN)
	m.startServers()
	m.must(m.hub, "admin", "user", "create", "alice@lab")
	m.serveOn(m.web, "", 80)
	m.serveOn(m.web, "", 8080)
	before := network(t, m.alice)
	m.joinWith(m.web, []string{"--tun=on"}, "--tag", "tag:web")
	m.joinWith(m.alice, []string{"--tun"}, "--user", "alice@lab")
	web := m.status(m.web)
	if web.Device.Kind != "tun" || web.Device.Name != "hedge0" || web.Inbound != "host" {
		t.Fatalf("web's device is %+v, inbound %s", web.Device, web.Inbound)
	}
	for _, part := range []struct {
		name string
		f    func(*testing.T, *mesh, []netip.Addr)
	}{
		{"PlainPrograms", tunPlainPrograms},
		{"DeniedIsRefused", tunDenied},
		{"ForeignSource", tunForeignSource},
		{"Killed", tunKilled},
		{"Deleted", tunDeleted},
	} {
		if !t.Run(part.name, func(t *testing.T) { sub := *m; sub.t = t; part.f(t, &sub, web.Addrs) }) {
			return
		}
	}
	m.must(m.alice, "down")
	if after := network(t, m.alice); after != before {
		t.Errorf("the host before\n%s\nand after\n%s", before, after)
	}
	t.Run("NotPermitted", func(t *testing.T) { sub := *m; sub.t = t; tunNotPermitted(t, &sub) })
}

// literal is an address as in a URL.
func literal(a netip.Addr) string { return strings.TrimSuffix(netip.AddrPortFrom(a, 0).String(), ":0") }

func tunPlainPrograms(t *testing.T, m *mesh, web []netip.Addr) {
	for _, a := range web {
		url := "http://" + literal(a) + "/"
		m.eventually(10*time.Second, url+" answers", func() error {
			out, err := m.plain(m.alice, url)
			if err != nil || !strings.Contains(out, marker) {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		if out, err := m.plain(m.alice, url+"big"); err != nil || len(out) != len(marker)<<15 {
			t.Errorf("%sbig: %d bytes, %v", url, len(out), err)
		}
		if out, err := m.alice.Command(t.Context(), "ping", "-c", "3", "-i", "0.2", "-W", "2", a.String()).CombinedOutput(); err != nil {
			t.Errorf("ping %v: %v\n%s", a, err, out)
		}
		// Longer than the path carries: in fragments, or refused on the spot where that is forbidden.
		if out, err := m.alice.Command(t.Context(), "ping", "-c", "2", "-i", "0.2", "-W", "2", "-s", "3000", a.String()).CombinedOutput(); err != nil {
			t.Errorf("ping -s 3000 %v: %v\n%s", a, err, out)
		}
		if out, err := m.alice.Command(t.Context(), "ping", "-c", "1", "-W", "2", "-s", "1600", "-M", "do", a.String()).CombinedOutput(); err == nil || !strings.Contains(string(out), "too long") {
			t.Errorf("ping -s 1600 -M do %v: %v, want that it is too long\n%s", a, err, out)
		}
	}
	if out, err := m.curl(m.alice, "http://web.hedge.internal/"); err != nil || !strings.Contains(out, marker) {
		t.Errorf("by the proxy: %v\n%s", err, out)
	}
	m.pathIs("direct", m.alice, "web")
	s := m.status(m.alice)
	for _, e := range append(s.Listen, m.status(m.web).Listen...) {
		if ap := netip.MustParseAddrPort(e); netip.MustParsePrefix("100.64.0.0/10").Contains(ap.Addr()) || ap.Addr() == web[len(web)-1] {
			t.Errorf("an address in the mesh is offered as a way to it: %s", e)
		}
	}
}

func tunDenied(t *testing.T, m *mesh, web []netip.Addr) {
	for _, a := range web {
		start := time.Now()
		out, err := m.plain(m.alice, "http://"+literal(a)+":8080/")
		if x, ok := err.(*exec.ExitError); !ok || x.ExitCode() != 7 {
			t.Errorf("curl %v:8080: %v, want exit 7, refused\n%s", a, err, out)
		}
		if took := time.Since(start); took > 5*time.Second { // curl's start included; untold, it would try for ten
			t.Errorf("the refusal took %v", took)
		}
	}
	// Who dials through the node is told the rule, or that there is none.
	if out, err := m.curl(m.alice, "http://web.hedge.internal:8080/"); err == nil {
		t.Errorf("not allowed, and answers by the proxy: %s", out)
	}
	// The other way there is no rule at all.
	alice := m.status(m.alice).Addrs[0]
	if out, err := m.plain(m.web, "http://"+literal(alice)+"/"); err == nil {
		t.Errorf("web reaches alice: %s", out)
	}
}

// A program that binds an address of another interface gets nothing into the mesh.
func tunForeignSource(t *testing.T, m *mesh, web []netip.Addr) {
	before := m.status(m.alice).Traffic.TxDenied
	if out, err := m.plain(m.alice, "http://"+literal(web[0])+"/", "--interface", m.alice.Addr.String(), "--max-time", "2"); err == nil {
		t.Errorf("a packet with a foreign source came through: %s", out)
	}
	if after := m.status(m.alice).Traffic.TxDenied; after <= before {
		t.Errorf("%d packets were not let out, as many as before", after)
	}
}

func tunKilled(t *testing.T, m *mesh, web []netip.Addr) {
	rules := func() string {
		out, err := m.alice.Command(t.Context(), "ip", "rule", "show").CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	// What a node with an exit would leave behind: these are its rules, to a table that is empty.
	for _, r := range []string{"pref 5200 lookup main suppress_prefixlength 0 protocol 104", "not fwmark 0x680000 pref 5201 lookup 26630 protocol 104"} {
		if out, err := m.alice.Command(t.Context(), "ip", append([]string{"rule", "add"}, strings.Fields(r)...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip rule add %s: %s", r, out)
		}
	}
	if err := syscall.Kill(m.status(m.alice).PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.eventually(10*time.Second, "the interface is gone with its process", func() error {
		if out, err := m.alice.Command(t.Context(), "ip", "link", "show", "hedge0").CombinedOutput(); err == nil {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	m.eventually(10*time.Second, "another starts", func() error { _, _, err := m.hedge(m.alice, "up", "--tun=on"); return err })
	if r := rules(); strings.Contains(r, "520") {
		t.Errorf("rules that were left behind are still there:\n%s", r)
	}
	m.eventually(20*time.Second, "web answers alice again", func() error { _, err := m.plain(m.alice, "http://"+literal(web[0])+"/"); return err })
}

// Somebody takes the interface away: the node ends and says so, and starts again.
func tunDeleted(t *testing.T, m *mesh, web []netip.Addr) {
	if out, err := m.alice.Command(t.Context(), "ip", "link", "del", "hedge0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.eventually(10*time.Second, "the node has ended", func() error {
		if _, code, _ := m.hedge(m.alice, "status"); code != 3 {
			return fmt.Errorf("hedge status: exit %d", code)
		}
		return nil
	})
	m.must(m.alice, "up", "--tun=on")
	m.eventually(20*time.Second, "web answers alice again", func() error { _, err := m.plain(m.alice, "http://"+literal(web[0])+"/"); return err })
}

// Without the right to make an interface, auto falls back and says why, and on fails and says what it takes.
func tunNotPermitted(t *testing.T, m *mesh) {
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("needs setpriv (util-linux)")
	}
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		cmd := m.command(ctx, m.alice, "setpriv", append([]string{"--bounding-set=-net_admin", "--inh-caps=-net_admin", m.bin}, args...)...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run("up", "--tun=on")
	if err == nil || !strings.Contains(out, "CAP_NET_ADMIN") {
		t.Errorf("--tun=on: %v\n%s", err, out)
	}
	out, err = run("up", "--tun")
	if s := m.status(m.alice); err != nil || s.Device.Kind != "netstack" || !strings.Contains(s.Device.Why, "CAP_NET_ADMIN") {
		t.Errorf("--tun: %v, device %+v\n%s", err, s.Device, out)
	}
	m.answers(m.alice, "http://web.hedge.internal/")
	m.must(m.alice, "down")
}

// network is all that a host says of its addresses, routes and rules.
func network(t *testing.T, h *lab.Host) string {
	t.Helper()
	var all strings.Builder
	for _, f := range []string{"-4", "-6"} {
		for _, list := range []string{"addr show", "route show table all", "rule show"} {
			out, err := h.Command(t.Context(), "ip", append([]string{f}, strings.Fields(list)...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("ip %s: %v: %s", list, err, out)
			}
			for l := range strings.Lines(string(out)) {
				if strings.Contains(l, "fe80:") || strings.HasPrefix(l, "Error: Peer netns") { // of eth0, still being tried for a second at first
					continue
				}
				if name, _, link := strings.Cut(l, ": <"); link { // of a link that it is there, not how it is
					if l = name + "\n"; strings.Contains(name, "eth0") {
						continue // with IPv6 only once it has its link-local address
					}
				}
				all.WriteString(l)
			}
		}
	}
	return all.String()
}

// plain is curl without a proxy: by the host's own network.
func (m *mesh) plain(h *lab.Host, url string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := h.Command(ctx, "curl", append([]string{"-sS", "--noproxy", "*", "--max-time", "10", url}, args...)...).CombinedOutput()
	return string(out), err
}

type nodeStatus struct {
	State   string       `json:"state"`
	PID     int          `json:"pid"`
	Addrs   []netip.Addr `json:"addrs"`
	Listen  []string     `json:"endpoints"`
	Inbound string       `json:"inbound"`
	Device  struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
		Why  string `json:"why"`
	} `json:"device"`
	Traffic struct {
		TxDenied uint64 `json:"tx_denied_packets"`
	} `json:"traffic"`
}

func (m *mesh) status(h *lab.Host) (s nodeStatus) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(m.must(h, "status", "--json")), &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

package test

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// The policy with which third may be the peer relay of alice and web, and the one without.
const (
	policyThird = `{
	"tagOwners": {"tag:web": [], "tag:third": []},
	"acls": [
		{"action": "accept", "src": ["alice@lab"], "dst": ["tag:web:80"]},
		{"action": "accept", "src": ["tag:web"], "dst": ["tag:third:9"]}, // they know each other: it is enough that alice may use it
	],
	"grants": [%s],
}`
	grantThird = `{"src": ["alice@lab"], "dst": ["tag:third"], "app": {"tailscale.com/cap/relay": []}}`
)

// newThirdMesh is alice and web behind NATs that give each far end a port of its own, and third, which is in the open. By
// it a round trip takes 80 ms, by the relay 160.
func newThirdMesh(t *testing.T) (m *relayMesh, third *lab.Host) {
	t.Helper()
	if err := lab.CanWorld(); err != nil {
		t.Skip(err)
	}
	world, err := lab.NewWorld()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Close(); err != nil {
			t.Error(err)
		}
	})
	m = &relayMesh{mesh: bare(t)}
	server := func(n int, name string) *lab.Host {
		s, err := world.Server(n)
		if err != nil {
			t.Fatal(err)
		}
		if name == "relay" {
			s.Wire.Set(func(l *lab.Line) { l.Delay = 3 * lab.Half })
		}
		return m.lab.At(name, s.Space, s.Addr)
	}
	site := func(name string) *lab.Host {
		s, err := world.Site("hard", false)
		if err != nil {
			t.Fatal(err)
		}
		return m.lab.At(name, s.Space, s.Addr)
	}
	m.hub, m.relay, third = server(0, "hub"), server(1, "relay"), server(2, "third")
	m.alice, m.web = site("alice"), site("web")
	m.writePolicy(fmt.Sprintf(policyThird, grantThird))
	m.startServers()
	m.must(m.hub, "admin", "user", "create", "alice@lab")
	m.serve(m.web, 80)
	m.end(func() {
		for _, h := range []*lab.Host{m.alice, m.web, third} {
			m.hedge(h, "down")
		}
	})
	m.joinWith(third, []string{"--peer-relay"}, "--tag", "tag:third")
	m.join(m.web, "--tag", "tag:web")
	m.join(m.alice, "--user", "alice@lab")
	return m, third
}

// relayStatus is a part of what hedge status says.
type relayStatus struct {
	PID       int `json:"pid"`
	PeerRelay *struct {
		Users   int    `json:"users"`
		Packets uint64 `json:"packets"`
		Bytes   uint64 `json:"bytes"`
		Pairs   []struct {
			A, B string
			Open bool
		} `json:"pairs"`
	} `json:"peer_relay"`
}

func (m *mesh) relaying(h *lab.Host) (s relayStatus) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(m.must(h, "status", "--json")), &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// forwarded is how many bytes a peer relay has sent on.
func (m *mesh) forwarded(h *lab.Host) uint64 {
	if s := m.relaying(h); s.PeerRelay != nil {
		return s.PeerRelay.Bytes
	}
	return 0
}

// TestPeerRelay is what a node does as a relay for two others, from the grant to its end.
func TestPeerRelay(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary and takes half a minute")
	}
	m, third := newThirdMesh(t)
	c := third.Capture(marker)
	m.answers(m.alice, "http://web.hedge.internal/")
	m.pathIs("peer-relay", m.alice, "web")
	m.pathIs("peer-relay", m.web, "alice")
	if out := m.must(m.alice, "status", "--why", "web"); !strings.Contains(out, "via peer relay third") || !strings.Contains(out, "peer relay third") {
		t.Errorf("hedge status --why says\n%s", out)
	}
	if out := m.must(m.alice, "netcheck"); !strings.Contains(out, "third") {
		t.Errorf("hedge netcheck says\n%s", out)
	}

	// A stream goes that way, and third cannot read it.
	n := m.download()
	before, seen, begin := m.forwarded(third), n.Load(), time.Now()
	for range 8 {
		m.flows(n, 10*time.Second)
	}
	took := time.Since(begin)
	come, sent := n.Load()-seen, m.forwarded(third)-before
	if sent < uint64(come)/2 {
		t.Errorf("%d bytes came, and the peer relay sent on %d", come, sent)
	}
	t.Logf("%.0f Mbit/s by the peer relay", float64(come)*8e-6/took.Seconds())
	if c.Found(marker) > 0 || c.Bytes() < int(come) {
		t.Errorf("on the peer relay's wire: %v", c)
	}

	// Without the grant the same stream goes on by the relay, at once.
	begin = time.Now()
	m.writePolicy(fmt.Sprintf(policyThird, ""))
	m.eventually(5*time.Second, "nothing goes by the peer relay", func() error {
		if s := m.relaying(third); len(s.PeerRelay.Pairs) > 0 {
			return fmt.Errorf("%+v", s.PeerRelay)
		}
		return nil
	})
	ended := time.Since(begin)
	t.Logf("%v after the policy changed nothing went by the peer relay; a megabyte more came within %v", ended.Round(time.Millisecond), m.flows(n, 30*time.Second).Round(time.Millisecond))
	if ended > 2*time.Second { // of it the coordinator takes a moment to see the file, and hedge status to say so
		t.Errorf("%v after the policy changed a pair was still there", ended)
	}
	m.pathIs("relay", m.alice, "web")
	was := m.forwarded(third)
	m.flows(n, 30*time.Second)
	if now := m.forwarded(third); now != was {
		t.Errorf("%d bytes went by the peer relay without a grant", now-was)
	}

	// With it, it is used again, and when it is killed the stream goes on by the relay.
	m.writePolicy(fmt.Sprintf(policyThird, grantThird))
	m.pathIs("peer-relay", m.alice, "web")
	m.flows(n, 30*time.Second)
	if err := syscall.Kill(m.relaying(third).PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	t.Logf("a megabyte more came within %v of the peer relay being killed", m.flows(n, 30*time.Second).Round(time.Millisecond))
	m.pathIs("relay", m.alice, "web")

	// It comes back, with its flag; and without.
	m.must(third, "up")
	m.pathIs("peer-relay", m.alice, "web")
	m.must(third, "set", "--peer-relay=false")
	m.pathIs("relay", m.alice, "web")
	m.flows(n, 30*time.Second)
	if out := m.must(m.alice, "ping", "web", "-c", "5"); strings.Contains(out, "peer relay") {
		t.Errorf("it is no peer relay any more, and hedge ping says\n%s", out)
	}
	m.flows(n, 30*time.Second)
}

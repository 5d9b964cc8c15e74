package bind

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/path"
	"github.com/hedge-mesh/hedge/test/lab"
)

// meeting is two sides in two places of an internet in memory, where any two places are 20 ms apart and the relay takes
// 39: a relay, and two STUN servers.
type meeting struct {
	t      *testing.T
	net    *lab.Internet
	rel    *doubles
	a, b   *side
	ma, mb *lab.Machine
	ra, rb *lab.Router
	start  time.Time
	n      uint64
	oneWay bool          // only a talks
	every  time.Duration // between two packets of one side; 0 for 10 ms
	spent  atomic.Int64  // bytes of probes and the like, of both sides, IP headers included
	long   bool          // packets are as long as what WireGuard makes of 1280 bytes
	side   func(*lab.Machine) *side
	sideAs func(host *lab.Machine, old *side) *side // with the keys of an old one
	kind   string                                   // of a's place

	mu     sync.Mutex
	direct map[*side]time.Duration // since the start; the latest change to a direct path, 0 if there is none now
	first  map[*side]time.Duration
	change map[*side]int
}

// wired is a relay of the internet's: packets arrive in order, after a while.
type wired struct {
	*doubles
	net   *lab.Internet
	spent *atomic.Int64
}

func (r wired) dial(cfg derp.ClientConfig) RelayClient {
	return wiredClient{r.doubles.dial(cfg).(*double), r.net, r.spent}
}

type wiredClient struct {
	*double
	net   *lab.Internet
	spent *atomic.Int64
}

// counted is a socket that counts what it sends, but WireGuard's and STUN.
type counted struct {
	*lab.Socket
	spent *atomic.Int64
}

func (c counted) WriteTo(b []byte, to net.Addr) (int, error) {
	c.count(b, to.(*net.UDPAddr).AddrPort().Addr())
	return c.Socket.WriteTo(b, to)
}

func (c counted) WriteTTL(b []byte, to netip.AddrPort, ttl int) (int, error) {
	c.count(b, to.Addr())
	return c.Socket.WriteTTL(b, to, ttl)
}

func (c counted) count(b []byte, to netip.Addr) {
	if _, ok := path.Sender(b); ok {
		c.spent.Add(int64(len(b) + headers(to.Unmap())))
	}
}

func (c wiredClient) Send(dst key.NodePublic, pkts [][]byte) bool {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if c.r.down[c.cfg.ID] {
		return false
	}
	c.r.sends.Add(1)
	var copies [][]byte
	for _, p := range pkts {
		if c.r.lose != nil && c.r.lose(p) {
			continue
		}
		if _, ok := path.Sender(p); ok {
			c.spent.Add(int64(len(p) + 28))
		}
		copies = append(copies, append([]byte(nil), p...))
	}
	c.net.After(c.r.delay, func() {
		c.r.mu.Lock()
		d := c.r.at[c.cfg.ID][dst]
		if c.r.down[c.cfg.ID] {
			d = nil
		}
		c.r.mu.Unlock()
		if d != nil {
			d.cfg.Receive(c.cfg.Node, copies)
		}
	})
	return true
}

func (c wiredClient) SendPriority(dst key.NodePublic, pkts [][]byte) bool { return c.Send(dst, pkts) }

// stunServers opens two STUN servers for both families.
func stunServersIn(t *testing.T, n *lab.Internet) (names []string) {
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for range 2 {
		m := n.Machine().Both()
		for _, network := range []string{"udp4", "udp6"} {
			pc, err := m.Listen(context.Background(), network, ":3478")
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, netip.AddrPortFrom(m.Addr(network == "udp6"), 3478).String())
			wg.Go(func() { derp.ServeSTUN(pc) })
			t.Cleanup(func() { pc.Close() })
		}
	}
	return names
}

func meet(t *testing.T, seed uint64, a, b string) *meeting {
	m := &meeting{t: t, net: lab.NewInternet(seed), direct: map[*side]time.Duration{}, first: map[*side]time.Duration{}, change: map[*side]int{}}
	rel := wired{newDoubles(39 * time.Millisecond), m.net, &m.spent} // not 40, or packets of two ways would arrive in one moment
	m.rel = rel.doubles
	names := stunServersIn(t, m.net)
	m.ma, m.mb, m.ra, m.rb = m.net.Pair(a, b)
	mk := func(host *lab.Machine, old *side) *side {
		var s *side
		listen := func(ctx context.Context, network, address string) (net.PacketConn, error) {
			pc, err := host.Listen(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return counted{pc.(*lab.Socket), &m.spent}, nil
		}
		var cfg Config
		if old != nil {
			cfg.Node, cfg.Disco, cfg.Machine = old.cfg.Node, old.cfg.Disco, old.cfg.Machine
		}
		s = newSide(t, Config{Node: cfg.Node, Disco: cfg.Disco, Machine: cfg.Machine, Listen: listen, Interfaces: host.Interfaces, DialRelay: rel.dial,
			LinkMTU: func(netip.AddrPort) int { return 1500 },
			Changed: func(c PathChange) {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.change[s]++
				if os.Getenv("HEDGE_CHANGES") != "" {
					t.Logf("%v %v: %v %s", time.Since(m.start), s == m.a, c.Path.Addr, c.Path.Why)
				}
				m.direct[s] = 0
				if c.Path.Direct {
					m.direct[s] = time.Since(m.start)
					if m.first[s] == 0 {
						m.first[s] = time.Since(m.start)
					}
				}
			}})
		s.small = true
		return s
	}
	m.side = func(host *lab.Machine) *side { return m.sideAs(host, nil) }
	m.sideAs = func(host *lab.Machine, old *side) *side {
		s := mk(host, old)
		s.SetRelays([]Relay{{ID: 1, URLs: []string{"http://relay"}, STUN: names}})
		s.attach()
		return s
	}
	m.a, m.b = m.side(m.ma), m.side(m.mb)
	<-time.After(time.Second) // STUN; and the coordinator tells each of the other
	m.a.SetPeers([]Peer{m.b.peer(1, m.b.Endpoints()...)})
	m.b.SetPeers([]Peer{m.a.peer(1, m.a.Endpoints()...)})
	synctest.Wait()
	m.start = time.Now()
	return m
}

func (m *meeting) end() { m.a.stop(); m.b.stop(); synctest.Wait() }

// fate is what became of the packets of a talk, both ways together: copies are none, as WireGuard drops them.
type fate struct {
	sent, lost int
	late       int // the most packets of one direction that another overtook
	gap        time.Duration
}

// shake gives both sides a session, as WireGuard's first two packets do.
func (m *meeting) shake() {
	m.a.to(m.b, wg(initiation, 1, 0, 0))
	<-m.b.got
	m.b.to(m.a, wg(response, 2, 1, 0))
	<-m.a.got
}

// talk exchanges a packet each way every 10 ms, for d or until enough says so.
func (m *meeting) talk(d time.Duration, enough func() bool) (f fate) {
	sent := map[uint64]time.Time{}
	var got [2]map[uint64]bool
	var top [2]uint64
	var late [2]int
	take := func() {
		for i, s := range []*side{m.a, m.b} {
			for more := true; more; {
				select {
				case p := <-s.got:
					k := number(p.b)
					if p.b[0] != transport || got[i][k] || sent[k].IsZero() {
						continue
					}
					got[i][k] = true
					if k < top[i] {
						late[i]++
					}
					top[i] = max(top[i], k)
				default:
					more = false
				}
			}
		}
	}
	got[0], got[1] = map[uint64]bool{}, map[uint64]bool{}
	from := m.n + 1
	for end := time.Now().Add(d); time.Now().Before(end) && (enough == nil || !enough()); {
		m.n++
		sent[m.n] = time.Now()
		size := 96
		if m.long {
			size = 1280 + wgOverhead
		}
		m.a.to(m.b, slices.Concat(wgData(2, m.n), make([]byte, size-96)))
		if !m.oneWay {
			m.b.to(m.a, slices.Concat(wgData(1, m.n), make([]byte, size-96)))
		}
		<-time.After(cmp.Or(m.every, 10*time.Millisecond))
		take()
	}
	<-time.After(300 * time.Millisecond)
	take()
	for i := range got {
		if m.oneWay && i == 0 {
			continue
		}
		var first time.Time
		for k := from; k <= m.n; k++ {
			switch {
			case got[i][k]:
				first = time.Time{}
				continue
			case first.IsZero():
				first = sent[k]
			}
			f.lost++
			f.gap = max(f.gap, sent[k].Sub(first)+10*time.Millisecond)
		}
		f.late = max(f.late, late[i])
	}
	f.sent = 2 * int(m.n-from+1)
	return f
}

// wgData is a transport packet with WireGuard's counter in its place.
func wgData(index uint32, n uint64) []byte {
	b := wg(transport, index, 0, n)
	for i := range 8 {
		b[8+i] = byte(n >> (8 * i))
	}
	return b
}

// both is when both sides had a direct path, 0 if one has none.
func (m *meeting) both() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.direct[m.a] == 0 || m.direct[m.b] == 0 {
		return 0
	}
	return max(m.first[m.a], m.first[m.b])
}

// How two machines reach each other: the one on the left speaks first. A number is the most milliseconds until both
// send directly, and "-" is by relay for good. Where ports are guessed ("?") luck has a part: a few may fail.
const matrix = `
          none      easy      easyopen  fullcone  addrrestr hard      hardseq   hardblk   cgn       cgn+hp    blocked   v6        dual
none      150       150       150       150       150       150       150       150       150       150       -         -         150
easy      150       150       150       150       150       4000?     1000?     3000?     150       150       -         -         150
easyopen  150       150       150       150       150       4000?     1000?     3000?     150       150       -         -         150
fullcone  150       150       150       150       150       150       150       150       150       150       -         -         150
addrrestr 150       150       150       150       150       150       150       150       150       150       -         -         150
hard      150       4000?     4000?     150       150       -         -         -         4000?     4000?     -         -         4000?
hardseq   150       1000?     1000?     150       150       -         1000?     6000?     1000?     1000?     -         -         1000?
hardblk   150       3000?     3000?     150       150       -         6000?     5000?     3000?     3000?     -         -         3000?
cgn       150       150       150       150       150       4000?     1000?     3000?     -         150       -         -         150
cgn+hp    150       150       150       150       150       4000?     1000?     3000?     150       150       -         -         150
blocked   -         -         -         -         -         -         -         -         -         -         -         -         -
v6        -         -         -         -         -         -         -         -         -         -         -         150       150
dual      150       150       150       150       150       4000?     1000?     3000?     150       150       -         150       150
`

// TestMatrix sets the places against each other. HEDGE_MATRIX_SEEDS asks for more runs of each pair.
func TestMatrix(t *testing.T) {
	seeds, _ := strconv.Atoi(os.Getenv("HEDGE_MATRIX_SEEDS"))
	lines := strings.Split(strings.TrimSpace(matrix), "\n")
	columns := strings.Fields(lines[0])
	var table strings.Builder
	guessed, unlucky := 0, 0
	for _, line := range lines[1:] {
		cells := strings.Fields(line)
		fmt.Fprintf(&table, "%-10s", cells[0])
		for i, want := range cells[1:] {
			worst := time.Duration(0)
			relayed := 0
			for seed := range uint64(max(seeds, 1)) {
				t.Run(cells[0]+" to "+columns[i], func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						took, f := cell(t, seed, cells[0], columns[i])
						worst = max(worst, took)
						if took == 0 {
							relayed++
						}
						limit, luck := strings.CutSuffix(want, "?")
						if luck {
							guessed++
							if took == 0 {
								unlucky++
								limit = "-"
							}
						}
						judge(t, limit, took, f)
					})
				})
			}
			if relayed > 0 {
				fmt.Fprintf(&table, " %5s", "-")
			} else {
				fmt.Fprintf(&table, " %5d", worst.Milliseconds())
			}
		}
		table.WriteByte('\n')
	}
	if unlucky > 3+guessed/20 {
		t.Errorf("%d of %d guesses failed", unlucky, guessed)
	}
	t.Logf("%d of %d guesses failed; milliseconds until both sides are direct:\n%10s %s\n%s", unlucky, guessed, "", strings.Join(columns, " "), table.String())
}

func judge(t *testing.T, want string, took time.Duration, f fate) {
	limit, err := strconv.Atoi(want)
	switch most := time.Duration(limit) * time.Millisecond; {
	case err != nil && took > 0:
		t.Errorf("direct after %v, expected to be by relay", took)
	case err == nil && took == 0:
		t.Errorf("not direct, expected after %v", most)
	case err == nil && took > most:
		t.Errorf("direct after %v, expected within %v", took, most)
	}
	// The direct way is 19 ms shorter and a packet leaves every 10: two are overtaken.
	if f.lost > 0 || f.late > 2 {
		t.Errorf("of %d packets %d are lost, %d late", f.sent, f.lost, f.late)
	}
}

func cell(t *testing.T, seed uint64, a, b string) (time.Duration, fate) {
	m := meet(t, seed, a, b)
	defer m.end()
	m.shake()
	settled := 0
	f := m.talk(6*time.Second, func() bool { // some more after it is direct
		if m.both() > 0 {
			settled++
		}
		return settled > 100
	})
	return m.both(), f
}

var _ net.PacketConn = (*lab.Socket)(nil)

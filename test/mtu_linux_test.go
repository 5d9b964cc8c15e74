package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hedge-mesh/hedge/test/lab"
)

// Paths of different widths from one host, and what becomes of them:
//
//	         ┌─ switch, 1,500 ───────────────────── db
//	alice ═══╡
//	         └─ left, 9,000 ── right ── 9,000 ───── web
//	                             └ its MTU shrinks, and what it says of that by ICMP is dropped
type mtuMesh struct {
	*mesh
	left, right *lab.Host
	addrs       map[string][]netip.Addr // IPv4 first
}

func newMTUMesh(t *testing.T) *mtuMesh {
	m := bare(t)
	m.hub, m.relay = m.lab.Host("hub"), m.lab.Host("relay")
	m.alice, m.web, m.db = m.lab.Host("alice"), m.lab.Host("web"), m.lab.Host("db")
	w := &mtuMesh{mesh: m, addrs: map[string][]netip.Addr{}}
	w.left, w.right = m.lab.LAN("left", pfx("172.16.1.1/24")), m.lab.LAN("right", pfx("172.16.2.1/24"))
	w.right.Join(w.left, pfx("172.16.1.2/24"))
	m.alice.Join(w.left, pfx("172.16.1.10/24"))
	m.web.Join(w.right, pfx("172.16.2.10/24"))
	for _, err := range []error{
		w.left.IP("link set port1 mtu 9000", "link set port2 mtu 9000", "link set lan mtu 9000"),
		w.right.IP("link set lan1 mtu 9000", "link set port2 mtu 9000", "link set lan mtu 9000"),
		m.alice.IP("link set lan1 mtu 9000", "route add 172.16.2.0/24 via 172.16.1.2"),
		m.web.IP("link set lan1 mtu 9000", "route add 172.16.1.0/24 via 172.16.2.1"),
		w.right.Sysctl("ipv4/ip_forward=1"),
		// The streams here are the kernel's. Where BBR is its usual, one that timed out on the way to the relay can stand at 90 kbit/s:
		// it takes four segments in flight for enough, having the round trip of the direct path in mind.
		m.alice.Sysctl("ipv4/tcp_congestion_control=reno"),
		m.web.Sysctl("ipv4/tcp_congestion_control=reno"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	w.right.Firewall("icmp type destination-unreachable drop")
	m.alice.Firewall("ip daddr "+m.web.Addr.String()+" udp dport != 9 drop", "ip saddr "+m.web.Addr.String()+" meta l4proto udp drop")
	m.writePolicy(policyAll)
	m.startServers()
	m.must(m.hub, "admin", "user", "create", "alice@lab")
	m.serveOn(m.web, "", 80)
	m.joinWith(m.web, []string{"--tun=on"}, "--tag", "tag:web")
	m.joinWith(m.db, []string{"--tun=on"}, "--tag", "tag:db")
	m.joinWith(m.alice, []string{"--tun=on"}, "--user", "alice@lab")
	for _, h := range []*lab.Host{m.alice, m.web, m.db} {
		w.addrs[h.Name] = m.status(h).Addrs
		m.end(func() { m.hedge(h, "down") }) // before the relay, which would wait for them
	}
	return w
}

func TestMTU(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary")
	}
	m := newMTUMesh(t)
	m.carries(m.alice, m.web, 8900, 9000)
	m.carries(m.web, m.alice, 8900, 9000)
	m.carries(m.alice, m.db, 1440, 1440)
	for _, part := range []struct {
		name string
		f    func(*testing.T, *mtuMesh)
	}{
		{"whole where the path carries it", mtuWhole},
		{"programs that do not ask", mtuUnasked},
		{"the path shrinks under traffic", mtuShrinks},
	} {
		if !t.Run(part.name, func(t *testing.T) { m.t = t; part.f(t, m) }) {
			return
		}
	}
}

// carries waits until a host's kernel knows that packets of least to most bytes reach a peer by hedge0.
func (m *mtuMesh) carries(from, to *lab.Host, least, most int) {
	m.t.Helper()
	for _, a := range m.addrs[to.Name] {
		m.eventually(60*time.Second, fmt.Sprintf("%s sends %d to %d bytes to %s at %v", from.Name, least, most, to.Name, a), func() error {
			m.hedge(from, "ping", to.Name, "-c", "1") // paths are looked for while there is traffic
			out, err := from.Command(m.t.Context(), "ip", "-j", "route", "get", a.String()).Output()
			var r []struct {
				Dev     string
				Metrics []struct{ MTU int }
			}
			if err := errors.Join(err, json.Unmarshal(out, &r)); err != nil {
				return err
			}
			if len(r) != 1 || r[0].Dev != "hedge0" || len(r[0].Metrics) == 0 || r[0].Metrics[0].MTU < max(least, 1280*a.BitLen()/128) || r[0].Metrics[0].MTU > max(most, 1280*a.BitLen()/128) {
				why, _, _ := m.hedge(from, "status", "--why", to.Name)
				return fmt.Errorf("%s\n%s", out, why)
			}
			return nil
		})
	}
}

// asking is a datagram socket of a host that deals with path MTUs as mode says (ip(7), IP_MTU_DISCOVER).
func (m *mtuMesh) asking(h *lab.Host, to netip.Addr, mode int) *net.UDPConn {
	m.t.Helper()
	var c net.Conn
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		ctl := raw.Control(func(fd uintptr) {
			if to.Is4() {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, mode), unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1))
			} else {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, mode), unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
			}
		})
		return errors.Join(err, ctl)
	}}
	if err := h.Do(func() (err error) { c, err = d.Dial("udp", netip.AddrPortFrom(to, 9).String()); return err }); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// takes counts the datagrams of so many bytes that arrive at port 9 of a host.
func (m *mtuMesh) takes(h *lab.Host, at netip.Addr, size int) *atomic.Int64 {
	m.t.Helper()
	var c *net.UDPConn
	if err := h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 9)))
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	n, done := new(atomic.Int64), make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, 64<<10); ; {
			k, err := c.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && k == size {
				n.Add(1)
			}
		}
	}()
	m.t.Cleanup(func() { c.Close(); <-done })
	return n
}

// until sends again and again until f is content.
func (m *mtuMesh) until(what string, c net.Conn, size int, f func(err error) bool) {
	m.t.Helper()
	m.eventually(10*time.Second, what, func() error {
		_, err := c.Write(make([]byte, size))
		if !f(err) {
			return fmt.Errorf("writing %d bytes: %v", size, err)
		}
		return nil
	})
}

// mtuWhole: what may not be fragmented arrives where the path carries it, and is refused on the spot where it does not.
func mtuWhole(t *testing.T, m *mtuMesh) {
	for i, a := range m.addrs["web"] {
		came := m.takes(m.web, a, 8000)
		m.until(fmt.Sprintf("8,000 bytes whole to %v", a), m.asking(m.alice, a, unix.IP_PMTUDISC_DO), 8000, func(error) bool { return came.Load() > 0 })
		db := m.addrs["db"][i]
		c := m.asking(m.alice, db, unix.IP_PMTUDISC_DO)
		if _, err := c.Write(make([]byte, 8000)); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("8,000 bytes whole to %v: %v, want that it is too long", db, err)
		}
		came = m.takes(m.db, db, 8000)
		m.until(fmt.Sprintf("8,000 bytes in fragments to %v", db), m.asking(m.alice, db, unix.IP_PMTUDISC_WANT), 8000, func(error) bool { return came.Load() > 0 })
	}
}

// mtuUnasked: programs that go by the interface's MTU are answered as by a router, or what they send is fragmented.
func mtuUnasked(t *testing.T, m *mtuMesh) {
	for _, a := range m.addrs["db"] {
		came := m.takes(m.db, a, 8000)
		m.until(fmt.Sprintf("too long a probe to %v is answered", a), m.asking(m.alice, a, unix.IP_PMTUDISC_PROBE), 8000, func(err error) bool {
			return errors.Is(err, syscall.EMSGSIZE) // of an earlier one
		})
		if n := came.Load(); n > 0 {
			t.Errorf("%d such came", n)
		}
		if a.Is4() {
			m.until(fmt.Sprintf("a datagram to %v that may be fragmented", a), m.asking(m.alice, a, unix.IP_PMTUDISC_INTERFACE), 8000, func(error) bool { return came.Load() > 0 })
		}
	}
}

// mtuShrinks: the path to web loses what is long, and says nothing. TCP goes on, and datagrams of 8,000 bytes do, in
// fragments, both soon.
func mtuShrinks(t *testing.T, m *mtuMesh) {
	web := m.addrs["web"][0]
	conn, err := inside{m.alice}.Dial("tcp", netip.AddrPortFrom(web, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	bytes, done := new(atomic.Int64), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond) // 3 MB/s: what is lost is not to be lost for want of a processor
		defer tick.Stop()
		for b := make([]byte, 32<<10); ; <-tick.C {
			k, err := conn.Read(b)
			if bytes.Add(int64(k)); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	fmt.Fprintf(conn, "GET /stream HTTP/1.1\r\nHost: web\r\n\r\n")
	const rate = 50
	var ways []*pour
	for _, a := range m.addrs["web"] {
		ways = append(ways, newPourOf(t, 8000, m.alice, m.web, netip.AddrPortFrom(a, 9), rate, 5000*rate))
	}
	ways = append(ways, newPourOf(t, 8000, m.web, m.alice, netip.AddrPortFrom(m.addrs["alice"][0], 9), rate, 5000*rate))
	ways = append(ways, newPourOf(t, 8000, m.alice, m.db, netip.AddrPortFrom(m.addrs["db"][0], 9), rate, 5000*rate))
	flowing := func(what string) {
		t.Helper()
		start := time.Now()
		m.flows(bytes, 20*time.Second)
		took := []string{"TCP " + time.Since(start).Round(time.Millisecond).String()}
		for i, p := range ways {
			from := p.sent.Load()
			m.eventually(20*time.Second, fmt.Sprintf("%s: datagrams of way %d come", what, i), func() error {
				if n := p.sent.Load(); n < from+20 || p.over(from, n).lost*2 > int(n-from) {
					return fmt.Errorf("%v", p.over(from, n))
				}
				return nil
			})
			took = append(took, time.Since(start).Round(time.Millisecond).String())
		}
		t.Logf("%s: all flow again after %s", what, strings.Join(took, ", "))
	}
	flowing("9,000")
	from := ways[0].sent.Load()
	if err := m.right.IP("link set lan mtu 1500", "link set lan1 mtu 1500"); err != nil {
		t.Fatal(err)
	}
	flowing("1,500")
	m.carries(m.alice, m.web, 1440, 1440)
	m.carries(m.web, m.alice, 1440, 1440)
	flowing("1,500, found")
	t.Logf("of the datagrams to web %v", ways[0].over(from, ways[0].sent.Load()))
	m.carries(m.alice, m.db, 1440, 1440)
}

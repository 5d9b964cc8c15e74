package test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// What lies behind nodes, on real kernels:
//
//	alice ═╗                 ╔═ router  ─┐
//	       ╠═ switch, mesh ══╬═ router2 ─┴─ lan   10.33.0.5, fd00:33::5, knows nothing of Hedge
//	hub   ═╝                 ╚═ exit ────── web   203.0.113.5, likewise
const routePolicy = `{
	"tagOwners": {"tag:router": [], "tag:exit": []},
	"autoApprovers": {"routes": {"10.33.0.0/16": ["tag:router"]}},
	"acls": [
		{"action": "accept", "src": ["alice@lab"], "dst": ["10.33.0.0/16:80", "fd00:33::/48:80", "autogroup:internet:*"]},
		{"action": "accept", "src": ["alice@lab"], "proto": "udp", "dst": ["10.33.0.0/16:53"]},
	],
}`

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestRoutes(t *testing.T) { testRoutes(t) }

// The same, with carriers that have an interface of the host: their kernels forward nothing and get nothing.
func TestRoutesTUN(t *testing.T) { testRoutes(t, "--tun=on") }

func testRoutes(t *testing.T, flags ...string) {
	if testing.Short() {
		t.Skip("a whole mesh takes half a minute")
	}
	m := bare(t)
	m.hub, m.relay, m.alice = m.lab.Host("hub"), m.lab.Host("relay"), m.lab.Host("alice")
	r := &routeMesh{mesh: m, flags: flags, router: m.lab.Host("router"), router2: m.lab.Host("router2"), exit: m.lab.Host("exit"),
		lan: m.lab.LAN("lan", pfx("10.33.0.5/24"), pfx("fd00:33::5/64")), web: m.lab.LAN("web", pfx("203.0.113.5/24"))}
	r.router.Join(r.lan, pfx("10.33.0.1/24"), pfx("fd00:33::1/64"))
	r.router2.Join(r.lan, pfx("10.33.0.2/24"), pfx("fd00:33::2/64"))
	r.exit.Join(r.web, pfx("203.0.113.1/24"), pfx("10.99.0.1/24"))
	r.exit.Etc("hosts", "203.0.113.5 only-there.example\n10.99.0.1 inside.example\n127.0.0.1 loop.example\n203.0.113.5 exit-itself\n")
	r.hosts()
	m.writePolicy(routePolicy)
	m.startServers()
	m.must(m.hub, "admin", "user", "create", "alice@lab")
	m.joinWith(r.router, flags, "--tag", "tag:router")
	m.must(r.router, "set", "--advertise-routes", "10.33.0.0/16,fd00:33::/48")
	m.join(m.alice, "--user", "alice@lab")
	for _, part := range []struct {
		name string
		f    func(*testing.T, *routeMesh)
	}{
		{"ApprovedByPolicy", approvedByPolicy},
		{"ApprovedByAdmin", approvedByAdmin},
		{"UDPAndPing", udpAndPing},
		{"RevokingCuts", revokingCuts},
		{"KeptOverRestart", keptOverRestart},
		{"StandbyTakesOver", standbyTakesOver},
		{"ExitIsChosen", exitIsChosen},
		{"NamesAtTheExit", namesAtTheExit},
		{"NeverTheCarrierItself", neverTheCarrierItself},
		{"ByInterface", byInterface},
	} {
		if !t.Run(part.name, func(t *testing.T) { sub := *r; mm := *m; mm.t = t; sub.mesh = &mm; part.f(t, &sub) }) {
			break // what follows would only say the same again
		}
	}
}

type routeMesh struct {
	*mesh
	flags                           []string // of those that carry
	router, router2, exit, lan, web *lab.Host
}

// hosts starts what is asked for behind the carriers, and what must never be reached through them.
func (r *routeMesh) hosts() {
	for _, s := range []struct {
		h  *lab.Host
		at string
	}{
		{r.lan, "10.33.0.5:80"}, {r.lan, "[fd00:33::5]:80"}, {r.lan, "10.33.0.5:81"}, {r.web, "203.0.113.5:80"},
		{r.router, "127.0.0.1:80"}, {r.exit, "127.0.0.1:80"}, {r.exit, "203.0.113.1:80"}, {r.exit, "10.99.0.1:80"}, {r.hub, "10.77.0.1:80"},
	} {
		r.serveAt(s.h, s.at)
	}
	var udp net.PacketConn
	if err := r.lan.Do(func() (err error) { udp, err = net.ListenPacket("udp", "10.33.0.5:53"); return err }); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { udp.Close() })
	go func() {
		for b := make([]byte, 2048); ; {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			udp.WriteTo(append([]byte("echo "), b[:n]...), from)
		}
	}()
}

func (r *routeMesh) serveAt(h *lab.Host, at string) {
	r.t.Helper()
	var ln net.Listener
	if err := h.Do(func() (err error) { ln, err = net.Listen("tcp", at); return err }); err != nil {
		r.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) { fmt.Fprintln(w, h.Name, "answers", q.RemoteAddr) })
	mux.HandleFunc("/stream", func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := io.WriteString(w, strings.Repeat(marker, 64)); err != nil {
				return
			}
		}
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(ln)
	r.t.Cleanup(func() { srv.Close() })
}

// gets waits until url answers with what, and returns how long that took.
func (r *routeMesh) gets(url, what string) time.Duration {
	r.t.Helper()
	start := time.Now()
	r.eventually(15*time.Second, url+" answers "+what, func() error {
		out, err := r.curl(r.alice, url)
		if err == nil && !strings.Contains(out, what) {
			err = fmt.Errorf("it answers %s", out)
		}
		return err
	})
	return time.Since(start)
}

// denied wants url refused, and why to say so with this reason.
func (r *routeMesh) denied(url, hostport, reason string) {
	r.t.Helper()
	if out, err := r.curl(r.alice, url); err == nil {
		r.t.Errorf("%s is not allowed, and answers\n%s", url, out)
	}
	if out, code, err := r.hedge(r.alice, "why", hostport); code != 4 || !strings.Contains(out, reason) {
		r.t.Errorf("why %s: exit %d, want 4 and %q: %v\n%s", hostport, code, reason, err, out)
	}
}

func approvedByPolicy(t *testing.T, r *routeMesh) {
	t.Logf("the first answer from behind the router after %v", r.gets("http://10.33.0.5/", "lan answers 10.33.0.1:").Round(time.Millisecond))
	r.denied("http://10.33.0.5:81/", "10.33.0.5:81", "no rule lets alice reach 10.33.0.5 (behind router) on tcp/81")
	r.denied("http://10.34.0.5/", "10.34.0.5:80", "no peer has a route to 10.34.0.5")
	if out, code, err := r.hedge(r.alice, "why", "10.33.0.5:80"); code != 0 || !strings.Contains(out, "acl.hujson:5") {
		t.Errorf("why does not name the rule: exit %d, %v\n%s", code, err, out)
	}
	if out, err := r.curl(r.alice, "http://10.33.0.6/"); err == nil {
		t.Errorf("nobody is at 10.33.0.6, and it answers\n%s", out)
	}
}

func approvedByAdmin(t *testing.T, r *routeMesh) {
	r.denied("http://[fd00:33::5]/", "[fd00:33::5]:80", "no peer has a route to fd00:33::5 that is approved")
	if out, _, _ := r.hedge(r.router, "why", "alice", "[fd00:33::5]:80"); !strings.Contains(out, "route fd00:33::/48 is not approved") {
		t.Errorf("the router says %s", out)
	}
	r.must(r.hub, "admin", "node", "routes", "router", "--approve", "fd00:33::/48")
	r.gets("http://[fd00:33::5]/", "lan answers [fd00:33::1]:")
}

func udpAndPing(t *testing.T, r *routeMesh) {
	c, err := r.associate("10.33.0.5:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := c.ask("hello"); err != nil || got != "echo hello" {
		t.Errorf("by UDP: %q, %v", got, err)
	}
	if out, code, err := r.hedge(r.alice, "ping", "--count", "1", "10.33.0.5"); code != 0 {
		t.Errorf("ping: exit %d, %v\n%s", code, err, out)
	}
	if out, code, _ := r.hedge(r.alice, "ping", "--count", "1", "10.33.0.6"); code == 0 {
		t.Errorf("nobody is at 10.33.0.6, and it answers a ping\n%s", out)
	}
}

func revokingCuts(t *testing.T, r *routeMesh) {
	conn := r.dial(r.alice, "10.33.0.5:80")
	fmt.Fprint(conn, "GET /stream HTTP/1.1\r\nHost: lan\r\n\r\n")
	if _, err := io.CopyN(io.Discard, conn, 1<<20); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	r.must(r.hub, "admin", "node", "routes", "router", "--revoke", "10.33.0.0/16")
	conn.SetReadDeadline(start.Add(5 * time.Second))
	_, err := io.Copy(io.Discard, conn)
	took := time.Since(start)
	t.Logf("revoking the route cut the download after %v (%v)", took.Round(time.Millisecond), err)
	if took > 3*time.Second { // the command itself takes a while on a busy machine
		t.Errorf("the download went on for %v after the route was gone", took)
	}
	r.denied("http://10.33.0.5/", "10.33.0.5:80", "no peer has a route to 10.33.0.5 that is approved")
	r.gets("http://[fd00:33::5]/", "lan answers") // the other route stays
	r.must(r.hub, "admin", "node", "routes", "router", "--approve", "10.33.0.0/16")
	r.gets("http://10.33.0.5/", "lan answers")
}

func keptOverRestart(t *testing.T, r *routeMesh) {
	r.must(r.router, "down")
	r.must(r.router, "up")
	r.gets("http://10.33.0.5/", "lan answers 10.33.0.1:")
}

// A second router stands by; it takes over when the first is gone, and stays.
func standbyTakesOver(t *testing.T, r *routeMesh) {
	r.joinWith(r.router2, r.flags, "--tag", "tag:router")
	r.must(r.router2, "set", "--advertise-routes", "10.33.0.0/16")
	r.eventually(10*time.Second, "router2 stands by", func() error {
		out, _, err := r.hedge(r.hub, "admin", "node", "routes", "router2")
		if err == nil && !strings.Contains(out, "stand-by for router") {
			err = errors.New(out)
		}
		return err
	})
	r.gets("http://10.33.0.5/", "lan answers 10.33.0.1:")
	r.must(r.router, "down")
	took := r.gets("http://10.33.0.5/", "lan answers 10.33.0.2:")
	t.Logf("the stand-by took over after %v", took.Round(time.Millisecond))
	if took > 8*time.Second {
		t.Errorf("the stand-by took over after %v", took)
	}
	r.must(r.router, "up")
	r.gets("http://[fd00:33::5]/", "lan answers [fd00:33::1]:") // it is back, and alone with this one
	r.gets("http://10.33.0.5/", "lan answers 10.33.0.2:")

	// One that vanishes without a word, as a machine does that loses its power, is missed a little later.
	r.router2.Firewall("meta l4proto { tcp, udp } drop")
	start := time.Now()
	r.eventually(40*time.Second, "the first router carries again", func() error {
		out, err := r.curl(r.alice, "http://10.33.0.5/")
		if err == nil && !strings.Contains(out, "lan answers 10.33.0.1:") {
			err = errors.New(out)
		}
		return err
	})
	t.Logf("after a router vanished the other took over after %v", time.Since(start).Round(time.Millisecond))
	r.router2.Firewall()
}

func exitIsChosen(t *testing.T, r *routeMesh) {
	r.joinWith(r.exit, r.flags, "--tag", "tag:exit")
	r.must(r.exit, "set", "--advertise-exit")
	if out, code, _ := r.hedge(r.alice, "set", "--exit-node", "exit"); code == 0 {
		t.Errorf("the exit is not approved, and is chosen\n%s", out)
	}
	r.must(r.hub, "admin", "node", "routes", "exit", "--approve", "exit")
	r.eventually(10*time.Second, "alice is told of the exit", func() error {
		out, _, err := r.hedge(r.alice, "status")
		if err == nil && !strings.Contains(out, "the internet") {
			err = errors.New(out)
		}
		return err
	})
	r.denied("http://203.0.113.5/", "203.0.113.5:80", "no exit is chosen; hedge set --exit-node NAME uses one of exit")
	if out := r.must(r.alice, "set", "--exit-node", "exit"); !strings.Contains(out, "exit node") {
		t.Errorf("set says %s", out)
	}
	r.gets("http://203.0.113.5/", "web answers 203.0.113.1:")
	r.gets("http://10.33.0.5/", "lan answers 10.33.0.1:") // a router's is the router's

	conn := r.dial(r.alice, "203.0.113.5:80")
	fmt.Fprint(conn, "GET /stream HTTP/1.1\r\nHost: web\r\n\r\n")
	if _, err := io.CopyN(io.Discard, conn, 1<<20); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	r.must(r.alice, "set", "--exit-node", "none")
	conn.SetReadDeadline(start.Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, conn); time.Since(start) > 3*time.Second {
		t.Errorf("the download by the exit went on for %v (%v)", time.Since(start), err)
	}
	r.denied("http://203.0.113.5/", "203.0.113.5:80", "no exit is chosen")
	r.must(r.alice, "set", "--exit-node", "exit")
	r.must(r.alice, "down")
	r.must(r.alice, "up") // it is kept
	r.gets("http://203.0.113.5/", "web answers")
}

// Names are looked up where they lead to: the exit knows some that alice does not, and tells none of its own networks.
func namesAtTheExit(t *testing.T, r *routeMesh) {
	r.gets("http://only-there.example/", "web answers 203.0.113.1:")
	for _, url := range []string{"http://inside.example/", "http://loop.example/", "http://nobody.example/", "http://exit-itself/"} {
		if out, err := r.curl(r.alice, url); err == nil {
			t.Errorf("%s answers\n%s", url, out)
		}
	}
	r.must(r.alice, "set", "--exit-node", "none")
	if out, err := r.curl(r.alice, "http://only-there.example/"); err == nil {
		t.Errorf("without an exit only-there.example answers\n%s", out)
	}
	r.must(r.alice, "set", "--exit-node", "exit")
}

// Even with a rule for everything, what carries is no way to itself, to other networks, or to the coordinator.
func neverTheCarrierItself(t *testing.T, r *routeMesh) {
	r.writePolicy(strings.Replace(routePolicy, `"acls": [`, `"acls": [{"action": "accept", "src": ["alice@lab"], "dst": ["*:*"]},`, 1))
	r.gets("http://10.33.0.5:81/", "lan answers")
	for _, c := range []struct{ url, hostport, reason string }{
		{"http://127.0.0.1/", "127.0.0.1:80", "denied"},
		{"http://169.254.169.254/", "169.254.169.254:80", "denied"},
		{"http://10.99.0.1/", "10.99.0.1:80", "no peer has a route"},        // a network of the exit's
		{"http://10.77.0.1/", "10.77.0.1:80", "no peer has a route"},        // the coordinator's host
		{"http://10.77.0.1:7443/", "10.77.0.1:7443", "no peer has a route"}, // and its port
		{"http://224.0.0.1/", "224.0.0.1:80", "denied"},
	} {
		r.denied(c.url, c.hostport, c.reason)
	}
	if out, err := r.curl(r.alice, "http://203.0.113.1/"); err == nil { // it is of the internet, but the exit's own
		t.Errorf("the exit carries to itself: %s", out)
	}
	r.gets("http://203.0.113.5/", "web answers")
}

// With an interface of the host, programs get there without a proxy.
func byInterface(t *testing.T, r *routeMesh) {
	r.must(r.alice, "down")
	if out, code, err := r.hedge(r.alice, "up", "--tun=on"); code != 0 {
		t.Skipf("no interface of the host: %v\n%s", err, out)
	}
	direct := func(url string) (string, error) {
		out, err := r.alice.Command(t.Context(), "curl", "-sS", "--max-time", "5", url).CombinedOutput()
		return string(out), err
	}
	for url, want := range map[string]string{"http://10.33.0.5/": "lan answers 10.33.0.1:", "http://[fd00:33::5]/": "lan answers [fd00:33::1]:", "http://203.0.113.5/": "web answers"} {
		r.eventually(10*time.Second, url+" answers", func() error {
			out, err := direct(url)
			if err == nil && !strings.Contains(out, want) {
				err = errors.New("it answers " + out)
			}
			return err
		})
	}
	// A program of this host asks the exit by the address it answers at.
	if got, err := r.askName(); err != nil || got != netip.MustParseAddr("203.0.113.5") {
		t.Errorf("asked by a program, the exit says %s, %v", got, err)
	}
	r.must(r.alice, "set", "--exit-node", "none")
	if out, err := direct("http://203.0.113.5/"); err == nil {
		t.Errorf("without an exit 203.0.113.5 answers\n%s", out)
	}
	if out, err := direct("http://10.33.0.5/"); err != nil {
		t.Errorf("the router's: %v\n%s", err, out)
	}
}

// askName asks 192.0.2.53 for an address of only-there.example (RFC 1035 section 4: an id, flags, one question).
func (r *routeMesh) askName() (got netip.Addr, err error) {
	c, err := (inside{r.alice}).Dial("udp", "192.0.2.53:53")
	if err != nil {
		return got, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"+"\x0aonly-there\x07example\x00"+"\x00\x01\x00\x01"); err != nil {
		return got, err
	}
	b := make([]byte, 512)
	n, err := c.Read(b)
	if err != nil {
		return got, err
	}
	got, _ = netip.AddrFromSlice(b[max(0, n-4):n]) // the answer's end is its address
	return got, nil
}

// association is UDP through alice's proxy (RFC 1928 section 7).
type association struct {
	tcp net.Conn
	udp *net.UDPConn
	to  netip.AddrPort
}

func (r *routeMesh) associate(to string) (a *association, err error) {
	a = &association{to: netip.MustParseAddrPort(to)}
	if a.tcp, err = (inside{r.alice}).Dial("tcp", "127.0.0.1:1055"); err != nil {
		return nil, err
	}
	a.tcp.SetDeadline(time.Now().Add(10 * time.Second))
	a.tcp.Write([]byte{5, 1, 0})
	if _, err := io.ReadFull(a.tcp, make([]byte, 2)); err != nil {
		return nil, err
	}
	a.tcp.Write([]byte{5, 3, 0, 1, 0, 0, 0, 0, 0, 0})
	reply := make([]byte, 10)
	if _, err := io.ReadFull(a.tcp, reply); err != nil || reply[1] != 0 {
		return nil, fmt.Errorf("associate: % x, %v", reply, err)
	}
	c, err := (inside{r.alice}).Dial("udp", fmt.Sprintf("127.0.0.1:%d", binary.BigEndian.Uint16(reply[8:])))
	if err != nil {
		return nil, err
	}
	a.udp = c.(*net.UDPConn)
	return a, nil
}

// ask sends a datagram until one comes back: by UDP either may be lost.
func (a *association) ask(s string) (string, error) {
	ip := a.to.Addr().As4()
	msg := append([]byte{0, 0, 0, 1}, ip[:]...)
	msg = binary.BigEndian.AppendUint16(msg, a.to.Port())
	msg = append(msg, s...)
	buf := make([]byte, 2048)
	for range 10 {
		a.udp.Write(msg)
		a.udp.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := a.udp.Read(buf); err == nil && n > 10 {
			return string(buf[10:n]), nil
		}
	}
	return "", context.DeadlineExceeded
}

func (a *association) Close() { a.tcp.Close(); a.udp.Close() }

package ostun

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hedge-mesh/hedge/test/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ip is what one of its lists says, all families.
func ip(t *testing.T, h *lab.Host, list ...string) string {
	t.Helper()
	var all strings.Builder
	for _, f := range []string{"-4", "-6"} {
		out, err := h.Command(t.Context(), "ip", append([]string{f}, list...)...).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "FIB table does not exist") {
			t.Fatalf("ip %v: %v: %s", list, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

// everything is all that a host says of its addresses, routes and rules.
func everything(t *testing.T, h *lab.Host) string {
	var all strings.Builder
	for l := range strings.Lines(ip(t, h, "addr", "show") + ip(t, h, "route", "show", "table", "all") + ip(t, h, "rule", "show")) {
		// The link-local address of eth0, still being tried for a second at first, and the line that follows any.
		if strings.Contains(l, "fe80:") || strings.Contains(l, "valid_lft") || strings.HasPrefix(l, "Error: Peer netns") {
			continue
		}
		if name, _, link := strings.Cut(l, ": <"); link { // of a link that it is there, not how it is
			if l = name + "\n"; strings.Contains(name, "eth0") {
				continue // with IPv6 only once it has its link-local address
			}
		}
		all.WriteString(l)
	}
	return all.String()
}

func openOn(t *testing.T, h *lab.Host) *Device {
	t.Helper()
	var d *Device
	if err := h.Do(func() (err error) { d, err = Open(Options{Name: "hedge7"}); return err }); err != nil {
		t.Skip(err) // no /dev/net/tun, say
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// An interface is what it was set to, step by step, and nothing when it is closed.
func TestSet(t *testing.T) {
	h := lab.New(t).Host("a")
	before := everything(t, h)
	d := openOn(t, h)
	must(t, d.Set(mesh))
	contains := func(what string, list []string, lines ...string) {
		t.Helper()
		got := ip(t, h, list...)
		for _, l := range lines {
			if !strings.Contains(got, l) {
				t.Errorf("%s: no %q in\n%s", what, l, got)
			}
		}
	}
	contains("mesh", []string{"addr", "show", "dev", "hedge7"}, "inet 100.64.0.1/32", "inet6 fd7a::1/128", "mtu 65472")
	contains("mesh", []string{"route", "show"}, "100.64.0.0/10 dev hedge7 proto 104 scope link src 100.64.0.1 mtu 1280", "fd7a::/48 dev hedge7 proto 104 src fd7a::1")
	must(t, d.SetPaths(map[netip.Addr]int{addr("100.64.0.9"): 8912, addr("fd7a::9"): 8912, addr("100.64.0.8"): 1220, addr("fd7a::8"): 1220}))
	must(t, d.Set(mesh))
	contains("paths", []string{"route", "show"}, "100.64.0.9 dev hedge7 proto 104 scope link src 100.64.0.1 mtu 8912 advmss 1240",
		"100.64.0.8 dev hedge7 proto 104 scope link src 100.64.0.1 mtu 1220", "fd7a::9 dev hedge7 proto 104 src fd7a::1 metric 1024 mtu 8912 advmss 1220")
	must(t, d.SetPaths(map[netip.Addr]int{addr("100.64.0.9"): 1440}))
	if got := ip(t, h, "route", "show"); !strings.Contains(got, "100.64.0.9 dev hedge7 proto 104 scope link src 100.64.0.1 mtu 1440") || strings.Contains(got, "8912") || strings.Contains(got, "100.64.0.8") {
		t.Errorf("not what was said last:\n%s", got)
	}
	if got := ip(t, h, "addr", "show", "dev", "hedge7"); strings.Contains(got, "fe80") {
		t.Errorf("it has a link-local address:\n%s", got)
	}
	if got := ip(t, h, "rule", "show"); strings.Contains(got, "5200") {
		t.Errorf("there are rules without need:\n%s", got)
	}

	exit := mesh
	exit.MTU, exit.Routes = 8920, prefixes("0.0.0.0/0", "::/0", "10.1.0.0/16")
	must(t, d.Set(exit))
	must(t, d.Set(exit))
	contains("exit", []string{"addr", "show", "dev", "hedge7"}, "mtu 8920")
	contains("exit", []string{"rule", "show"}, "5200:\tfrom all lookup main suppress_prefixlength 0", "5201:\tnot from all fwmark 0x680000 lookup 26")
	for to, via := range map[string]string{"192.0.2.1": "dev hedge7", "2001:db8::1": "dev hedge7", "10.77.0.9": "dev eth0", "10.1.0.1": "dev hedge7"} {
		out, err := h.Command(t.Context(), "ip", "route", "get", to).CombinedOutput()
		if err != nil || !strings.Contains(string(out), via) {
			t.Errorf("the way to %s: %v %s, want %s", to, err, out, via)
		}
	}
	if out, err := h.Command(t.Context(), "ip", "route", "get", "192.0.2.1", "mark", "0x680000").CombinedOutput(); err == nil {
		t.Errorf("a packet of the tunnel's own goes %s", out)
	}

	must(t, d.Set(mesh))
	if got := ip(t, h, "rule", "show"); strings.Contains(got, "520") {
		t.Errorf("rules stay without need:\n%s", got)
	}
	must(t, d.Set(exit))
	must(t, d.Close())
	if after := everything(t, h); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if err := d.Set(mesh); err == nil {
		t.Error("a closed interface can be set")
	}
}

// What a process leaves that was killed is gone after the next one has started, and what one that lives has is not.
func TestLeftBehind(t *testing.T) {
	h := lab.New(t).Host("a")
	before := everything(t, h)
	exit := mesh
	exit.Routes = prefixes("0.0.0.0/0", "::/0")
	d := openOn(t, h)
	must(t, d.Set(exit))
	var other *Device
	must(t, h.Do(func() (err error) { other, err = Open(Options{Name: "hedge8"}); return err }))
	if got := ip(t, h, "rule", "show"); strings.Count(got, "520") != 4 {
		t.Errorf("another interface took the rules of one that lives:\n%s", got)
	}
	must(t, other.Close())
	must(t, d.Device.Close()) // as the kernel does for a process that is killed
	if got := ip(t, h, "rule", "show"); strings.Count(got, "520") != 4 {
		t.Fatalf("nothing was left behind, so this test tests nothing:\n%s", got)
	}
	e := openOn(t, h)
	if got := ip(t, h, "rule", "show"); strings.Contains(got, "520") {
		t.Errorf("left behind:\n%s", got)
	}
	must(t, e.Set(exit))
	must(t, e.Close())
	if after := everything(t, h); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

// A route that the host has already is nobody's to take.
func TestConflict(t *testing.T) {
	h := lab.New(t).Host("a")
	if out, err := h.Command(t.Context(), "ip", "route", "add", "100.64.0.0/10", "dev", "eth0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d := openOn(t, h)
	if err := d.Set(mesh); err == nil || !strings.Contains(err.Error(), "elsewhere already") {
		t.Errorf("%v", err)
	}
	if got := ip(t, h, "route", "show"); !strings.Contains(got, "100.64.0.0/10 dev eth0") {
		t.Errorf("the host's own route is gone:\n%s", got)
	}
	must(t, h.Do(func() error {
		if _, err := Open(Options{Name: "hedge7"}); err == nil || !strings.Contains(err.Error(), "another name") {
			t.Errorf("opened twice: %v", err)
		}
		return nil
	}))
}

// Packets of our own come out of Read beside the kernel's, also while it waits; and it ends with Close.
func TestReadInjected(t *testing.T) {
	h := lab.New(t).Host("a")
	d := openOn(t, h)
	must(t, d.Set(mesh))
	read := make(chan []byte)
	done := make(chan error, 1)
	go func() {
		bufs, sizes := make([][]byte, d.BatchSize()), make([]int, d.BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		for {
			n, err := d.Read(bufs, sizes, 16)
			if err != nil {
				done <- err
				return
			}
			for i := range n {
				read <- append([]byte(nil), bufs[i][16:16+sizes[i]]...)
			}
		}
	}()
	next := func() []byte {
		t.Helper()
		select {
		case b := <-read:
			return b
		case <-time.After(5 * time.Second):
			t.Fatal("nothing was read in 5 s")
			return nil
		}
	}
	var c net.Conn
	must(t, h.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("100.64.0.2:9")))
		return err
	}))
	defer c.Close()
	for range 100 {
		want := bytes.Repeat([]byte{0x45}, 40)
		d.Inject([][]byte{want, want})
		for range 2 {
			if got := next(); !bytes.Equal(got, want) {
				t.Fatalf("% x, want what was injected", got)
			}
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if got := next(); !bytes.HasSuffix(got, []byte("hello")) {
			t.Fatalf("% x, want the kernel's datagram", got)
		}
	}
	must(t, d.Close())
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read ends with %v", err)
	}
}

// Wake makes a Read that waits return, at once or in a while, and costs no packet.
func TestWake(t *testing.T) {
	h := lab.New(t).Host("a")
	d := openOn(t, h)
	must(t, d.Set(mesh))
	counts := make(chan int)
	go func() {
		defer close(counts)
		bufs, sizes := [][]byte{make([]byte, 2048)}, []int{0}
		for {
			n, err := d.Read(bufs, sizes, 16)
			if err != nil {
				return
			}
			counts <- n
		}
	}()
	next := func(want int) {
		t.Helper()
		select {
		case n := <-counts:
			if n != want {
				t.Fatalf("%d packets, want %d", n, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("Read still waits")
		}
	}
	for range 100 {
		if !d.Wake(0) {
			t.Fatal("cannot be woken")
		}
		next(0)
		d.Wake(time.Millisecond)
		next(0)
		d.Wake(0)
		d.Inject([][]byte{{0x45, 0}}) // which wakes it too, and may have it woken once or twice
		for n := 0; n == 0; {
			select {
			case n = <-counts:
			case <-time.After(5 * time.Second):
				t.Fatal("what was injected is lost")
			}
		}
	}
	must(t, d.Close())
	for range counts {
	}
}

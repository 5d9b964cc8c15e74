package bind

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

func ips(s string) (out []netip.Addr) {
	for f := range strings.FieldsSeq(s) {
		out = append(out, netip.MustParseAddr(f))
	}
	return out
}

// Where a name led is where it leads while DNS says nothing, and what DNS says counts as soon as it does.
func TestNames(t *testing.T) {
	down := errors.New("no such host")
	for _, c := range []struct {
		name, host, known string
		answer            string
		err               error
		takes             time.Duration
		want              string // "" for an error
		within            time.Duration
		told              string
	}{
		{name: "an address", host: "192.0.2.9", err: down, want: "192.0.2.9"},
		{name: "a new name", host: "a.example", answer: "192.0.2.2 192.0.2.1", want: "192.0.2.2 192.0.2.1", told: "192.0.2.1 192.0.2.2"},
		{name: "a mapped address", host: "a.example", answer: "::ffff:192.0.2.2", want: "192.0.2.2", told: "192.0.2.2"},
		{name: "no DNS", host: "a.example", err: down},
		{name: "an empty answer", host: "a.example"},
		{name: "no DNS, and known", host: "a.example", known: "192.0.2.1", err: down, want: "192.0.2.1"},
		{name: "an empty answer, and known", host: "a.example", known: "192.0.2.1", want: "192.0.2.1"},
		{name: "a slow DNS", host: "a.example", answer: "192.0.2.2", takes: 5 * time.Second, want: "192.0.2.2", within: 5 * time.Second, told: "192.0.2.2"},
		{name: "a slow DNS, and known", host: "a.example", known: "192.0.2.1", answer: "192.0.2.2", takes: 5 * time.Second, want: "192.0.2.1", within: dnsPatience},
		{name: "it moved", host: "a.example", known: "192.0.2.1", answer: "192.0.2.2", want: "192.0.2.2", told: "192.0.2.2"},
		{name: "in another order", host: "a.example", known: "192.0.2.1 192.0.2.2", answer: "192.0.2.2 192.0.2.1", want: "192.0.2.2 192.0.2.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var told []netip.Addr
				n := names{ask: func(ctx context.Context, _ string) ([]netip.Addr, error) {
					select {
					case <-time.After(c.takes):
						return ips(c.answer), c.err
					case <-ctx.Done():
						return nil, context.Cause(ctx)
					}
				}}
				known := map[string][]netip.Addr{}
				if c.known != "" {
					known[c.host] = ips(c.known)
				}
				n.init(known, func(m map[string][]netip.Addr) { told = m[c.host] })
				start := time.Now()
				got, err := n.lookup(t.Context(), c.host)
				if !slices.Equal(got, ips(c.want)) || (err == nil) != (c.want != "") || time.Since(start) != c.within {
					t.Errorf("%v, %v after %v, want %q after %v", got, err, time.Since(start), c.want, c.within)
				}
				if !slices.Equal(told, ips(c.told)) {
					t.Errorf("told %v, want %q", told, c.told)
				}
			})
		})
	}
}

// What is remembered is bounded.
func TestNamesBounded(t *testing.T) {
	var many []netip.Addr
	for i := range 2 * maxLed {
		many = append(many, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	n := names{ask: func(context.Context, string) ([]netip.Addr, error) { return slices.Clone(many), nil }}
	n.init(map[string][]netip.Addr{"old.example": many}, nil)
	for i := range 2 * maxNames {
		if _, err := n.lookup(t.Context(), fmt.Sprintf("%d.example", i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(n.known) != maxNames || len(n.known["old.example"]) != maxLed || len(n.known["0.example"]) != maxLed {
		t.Errorf("%d names, %d and %d addresses", len(n.known), len(n.known["old.example"]), len(n.known["0.example"]))
	}
}

// A connection comes about by the address that answers, and by the same that did not while the network was dark.
func TestDialAny(t *testing.T) {
	refused := errors.New("connection refused")
	for _, c := range []struct {
		name  string
		addrs string
		dial  func(ctx context.Context, addr string, since time.Duration) error
		want  time.Duration
		err   bool
	}{
		{"at once", "a", func(context.Context, string, time.Duration) error { return nil }, 0, false},
		{"the second", "a b", func(ctx context.Context, addr string, _ time.Duration) error {
			if addr == "a" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}, dialStagger, false},
		{"the first refuses", "a b", func(_ context.Context, addr string, _ time.Duration) error {
			if addr == "a" {
				return refused
			}
			return nil
		}, 0, false},
		{"all refuse", "a b", func(context.Context, string, time.Duration) error { return refused }, 0, true},
		{"dark for 2.5 s", "a", func(ctx context.Context, _ string, since time.Duration) error {
			if since < 2500*time.Millisecond { // this SYN is lost
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}, 3 * time.Second, false},
		{"dark for ever", "a", func(ctx context.Context, _ string, _ time.Duration) error { <-ctx.Done(); return ctx.Err() }, 8 * time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
				defer cancel()
				start := time.Now()
				conn, err := dialAny(ctx, strings.Fields(c.addrs), func(ctx context.Context, addr string) (net.Conn, error) {
					if err := c.dial(ctx, addr, time.Since(start)); err != nil {
						return nil, err
					}
					p, q := net.Pipe()
					q.Close()
					return p, nil
				})
				if (err != nil) != c.err || time.Since(start) != c.want {
					t.Errorf("%v after %v, want %v", err, time.Since(start), c.want)
				}
				if conn != nil {
					conn.Close()
				}
			})
		})
	}
}

// A node that starts while DNS is down asks how it looks from outside as soon as names lead somewhere.
func TestSTUNNameLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := lab.NewInternet(1)
		at := netip.MustParseAddrPort(stunServersIn(t, n)[0])
		router := n.Router(lab.Home("easy"))
		host := router.Machine()
		s := newSide(t, Config{Listen: host.Listen, Interfaces: host.Interfaces, DialRelay: newDoubles(time.Millisecond).dial})
		defer s.stop()
		up := time.Now().Add(10 * time.Second)
		s.directory.ask = func(context.Context, string) ([]netip.Addr, error) {
			if time.Now().Before(up) {
				return nil, errors.New("server misbehaving")
			}
			return []netip.Addr{at.Addr()}, nil
		}
		s.SetRelays([]Relay{{ID: 1, URLs: []string{"http://relay"}, STUN: []string{fmt.Sprintf("stun.example:%d", at.Port())}}})
		s.attach()
		for deadline := up.Add(2 * time.Second); ; {
			if slices.ContainsFunc(s.Endpoints(), func(a netip.AddrPort) bool { return a.Addr() == router.Addr() }) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("2 s after DNS came back: %v", s.Endpoints())
			}
			<-time.After(50 * time.Millisecond)
		}
		if time.Now().Before(up) {
			t.Error("too soon to be true")
		}
	})
}

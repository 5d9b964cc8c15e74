package portmap

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	home = Gateway{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.1.7")}
	cafe = Gateway{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")}
)

// router is a gateway's side of a protocol. What it is asked, and what it says, are the test's.
type router struct {
	proto Protocol
	mu    sync.Mutex
	ext   string // the address it gives; empty refuses
	lease time.Duration
	delay time.Duration
	asked []time.Time
	given int // mappings that stand
	at    uint16
}

func (r *router) kind() Protocol { return r.proto }

func (r *router) mapPort(ctx context.Context, gw Gateway, port, external uint16, lifetime time.Duration) (netip.AddrPort, time.Duration, error) {
	r.mu.Lock()
	delay := r.delay // to think about a new one
	if lifetime == 0 {
		delay = 0
	}
	r.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return netip.AddrPort{}, 0, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if lifetime == 0 {
		r.given--
		r.at = 0
		return netip.AddrPort{}, 0, nil
	}
	r.asked = append(r.asked, time.Now())
	if r.ext == "" {
		return netip.AddrPort{}, 0, errSilent
	}
	if external == 0 {
		external = 50000 + uint16(r.proto)
	}
	if r.at == 0 {
		r.given++
	}
	r.at = external
	return netip.AddrPortFrom(netip.MustParseAddr(r.ext), external), r.lease, nil
}

func (r *router) say(ext string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ext = ext
}

func (r *router) stands() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.given
}

// told collects what a client says.
type told struct {
	mu  sync.Mutex
	all []string
}

func (t *told) changed(m Mapping) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := "none"
	if m.Valid() {
		s = m.Protocol.String() + " " + m.External.String()
	}
	t.all = append(t.all, s)
}

func (t *told) want(tb testing.TB, want ...string) {
	tb.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Equal(t.all, want) {
		tb.Errorf("told %q, want %q", t.all, want)
	}
	t.all = nil
}

type world struct {
	*Client
	told
	pcp, pmp, upnp router
	mu             sync.Mutex
	gw             Gateway
	gwErr          error
}

func (w *world) move(gw Gateway, err error) {
	w.mu.Lock()
	w.gw, w.gwErr = gw, err
	w.mu.Unlock()
	w.Refresh()
}

// inWorld runs a test of a client in fake time, and sees that it gives back whatever it got.
func inWorld(t *testing.T, prepare func(*world), f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{gw: home}
		for p, r := range map[Protocol]*router{PCP: &w.pcp, NATPMP: &w.pmp, UPnP: &w.upnp} {
			r.proto, r.lease, r.delay = p, time.Hour, 10*time.Millisecond
		}
		prepare(w)
		w.Client = Start(Config{Port: 41641, Changed: w.changed, protocols: []protocol{&w.pcp, &w.pmp, &w.upnp},
			Gateway: func() (Gateway, error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.gw, w.gwErr
			}})
		time.Sleep(4 * time.Second) // fake: past the first round
		f(t, w)
		w.Close()
		for _, r := range []*router{&w.pcp, &w.pmp, &w.upnp} {
			if n := r.stands(); n != 0 {
				t.Errorf("%s: %d mappings are left", r.proto, n)
			}
		}
	})
}

func TestPrefers(t *testing.T) {
	all := func(w *world) { w.pcp.ext, w.pmp.ext, w.upnp.ext = "203.0.113.5", "203.0.113.5", "203.0.113.5" }
	inWorld(t, all, func(t *testing.T, w *world) {
		w.told.want(t, "PCP 203.0.113.5:50001")
		if w.pmp.stands()+w.upnp.stands() != 0 {
			t.Error("more than one mapping is kept")
		}
	})
	inWorld(t, func(w *world) { all(w); w.pcp.delay = 200 * time.Millisecond }, func(t *testing.T, w *world) {
		w.told.want(t, "PCP 203.0.113.5:50001") // worth the wait
	})
	inWorld(t, func(w *world) { all(w); w.pcp.delay = time.Second }, func(t *testing.T, w *world) {
		w.told.want(t, "NAT-PMP 203.0.113.5:50002")
		if w.pcp.stands() != 0 {
			t.Error("what came too late is kept")
		}
	})
	inWorld(t, func(w *world) { w.upnp.ext, w.upnp.delay = "203.0.113.5", 2*time.Second }, func(t *testing.T, w *world) {
		w.told.want(t, "UPnP 203.0.113.5:50003")
	})
}

func TestRenews(t *testing.T) {
	inWorld(t, func(w *world) { w.pmp.ext = "203.0.113.5" }, func(t *testing.T, w *world) {
		time.Sleep(24 * time.Hour)
		w.told.want(t, "NAT-PMP 203.0.113.5:50002")
		w.pmp.mu.Lock()
		n := len(w.pmp.asked)
		w.pmp.mu.Unlock()
		if n < 48 || n > 50 {
			t.Errorf("asked %d times in a day, want every half hour", n)
		}
	})
}

// A gateway that stops answering keeps our mapping for what is left of its time, and no longer.
func TestLoses(t *testing.T) {
	inWorld(t, func(w *world) { w.pmp.ext = "203.0.113.5" }, func(t *testing.T, w *world) {
		w.pmp.say("")
		time.Sleep(55 * time.Minute)
		w.told.want(t, "NAT-PMP 203.0.113.5:50002")
		time.Sleep(6 * time.Minute)
		w.told.want(t, "none")
		if r := w.Report(); !errors.Is(r.Errors[NATPMP], errSilent) || r.Mapping.Valid() {
			t.Errorf("report %+v", r)
		}
		w.pmp.say("203.0.113.6")
		time.Sleep(11 * time.Minute)
		w.told.want(t, "NAT-PMP 203.0.113.6:50002")
	})
}

func TestMoves(t *testing.T) {
	inWorld(t, func(w *world) { w.pcp.ext = "203.0.113.5" }, func(t *testing.T, w *world) {
		w.told.want(t, "PCP 203.0.113.5:50001")
		w.pcp.say("198.51.100.7")
		w.move(cafe, nil)
		time.Sleep(time.Second)
		w.told.want(t, "PCP 198.51.100.7:50001")
		w.move(Gateway{}, errors.New("no gateway"))
		time.Sleep(time.Second)
		w.told.want(t, "none")
		w.pcp.mu.Lock()
		w.pcp.given = 0 // out of reach
		w.pcp.mu.Unlock()
	})
}

func TestDistrust(t *testing.T) {
	inWorld(t, func(w *world) { w.pcp.ext = "203.0.113.5" }, func(t *testing.T, w *world) {
		w.Distrust()
		time.Sleep(time.Hour)
		w.told.want(t, "PCP 203.0.113.5:50001", "none")
		if r := w.Report(); !r.Distrusted || w.pcp.stands() != 0 {
			t.Errorf("report %+v, %d mappings stand", r, w.pcp.stands())
		}
		w.Refresh()
		time.Sleep(time.Second)
		w.told.want(t, "PCP 203.0.113.5:50001")
	})
}

func TestRefusesNonsense(t *testing.T) {
	for _, ext := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1", "::"} {
		inWorld(t, func(w *world) { w.pcp.ext = ext }, func(t *testing.T, w *world) {
			w.told.want(t)
			if r := w.Report(); !errors.Is(r.Errors[PCP], errUnusable) {
				t.Errorf("%s: %v", ext, r.Errors[PCP])
			}
			w.pcp.mu.Lock()
			w.pcp.given = 0 // it never was one
			w.pcp.mu.Unlock()
		})
	}
}

// Close does not wait for a gateway that is silent.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &router{proto: PCP, ext: "203.0.113.5", lease: time.Hour, delay: 2 * time.Second}
		c := Start(Config{Port: 1, protocols: []protocol{slow}, Gateway: func() (Gateway, error) { return home, nil }})
		time.Sleep(time.Second)
		at := time.Now()
		c.Close()
		if d := time.Since(at); d > 10*time.Millisecond {
			t.Errorf("Close took %v", d)
		}
	})
}

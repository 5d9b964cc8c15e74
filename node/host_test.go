package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/ostun"
)

// fakeHost is an interface of no host.
type fakeHost struct {
	memDevice
	set []ostun.Config
}

func (h *fakeHost) SetPaths(map[netip.Addr]int) error { return nil }

func (h *fakeHost) Wake(time.Duration) bool { return false }

func (h *fakeHost) Set(c ostun.Config) error {
	h.set = append(h.set, c)
	return nil
}

// Which device it is, and why.
func TestMakeDevice(t *testing.T) {
	old := openHost
	defer func() { openHost = old }()
	for _, c := range []struct {
		name    string
		tun     string
		inbound Inbound
		fails   error // of making the interface
		kind    string
		why     string // part of the reason, or of the error if there is no kind
	}{
		{"nothing said", "", Inbound{}, nil, DeviceNetstack, "no interface of the host was asked for"},
		{"off", TUNOff, Loopback, nil, DeviceNetstack, "no interface of the host was asked for"},
		{"auto", TUNAuto, Loopback, nil, DeviceTUN, "it was asked for if possible, and is"},
		{"on", TUNOn, Loopback, nil, DeviceTUN, "it was asked for"},
		{"auto, not permitted", TUNAuto, Loopback, errors.New("it takes root"), DeviceNetstack, "no interface of the host: it takes root"},
		{"on, not permitted", TUNOn, Loopback, errors.New("it takes root"), "", "it takes root"},
		{"auto, but nothing is to come in", TUNAuto, Inbound{}, nil, DeviceNetstack, "inbound is to be off"},
		{"on, but nothing is to come in", TUNOn, Inbound{}, nil, "", "inbound is to be off"},
		{"misspelt", "yes", Loopback, nil, "", "none of auto, on and off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			openHost = func(ostun.Options) (host, error) {
				if c.fails != nil {
					return nil, c.fails
				}
				return &fakeHost{}, nil
			}
			n := &Node{cfg: Config{TUN: c.tun, Inbound: c.inbound}}
			d, err := n.makeDevice()
			if c.kind == "" {
				if err == nil || !strings.Contains(err.Error(), c.why) {
					t.Fatalf("%v, want an error that says %q", err, c.why)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if n.about.Kind != c.kind || !strings.Contains(n.about.Why, c.why) {
				t.Errorf("%+v, want %s: %s", n.about, c.kind, c.why)
			}
			if (n.host != nil) != (c.kind == DeviceTUN) || (n.stack != nil) == (n.host != nil) {
				t.Errorf("stack %v, host %v", n.stack, n.host)
			}
		})
	}
}

// A node on a host's interface gives it the Map's addresses.
func TestHostShape(t *testing.T) {
	old := openHost
	defer func() { openHost = old }()
	dev := &fakeHost{}
	openHost = func(ostun.Options) (host, error) { return dev, nil }
	n := &Node{cfg: Config{TUN: TUNOn, Inbound: Loopback}}
	if _, err := n.makeDevice(); err != nil {
		t.Fatal(err)
	}
	var err error
	n.bind, err = bind.New(bind.Config{Node: someKey, Disco: key.NewDisco(), Machine: key.NewMachine(), Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.bind.Stop)
	m := testMap(someKey)
	if err := n.shape(m, nil); err != nil {
		t.Fatal(err)
	}
	if len(dev.set) != 1 || !slices.Equal(dev.set[0].Addrs, v4First(m.Self.Addrs)) || !slices.Equal(dev.set[0].Mesh, m.Self.Prefixes) || len(dev.set[0].Routes) != 0 {
		t.Errorf("set %+v of %+v", dev.set, m.Self)
	}
}

// Listeners on several addresses accept as one, and end as one.
func TestListeners(t *testing.T) {
	var all []net.Listener
	for _, a := range []string{"127.0.0.1:0", "127.0.0.2:0"} {
		l, err := net.Listen("tcp", a)
		if err != nil {
			t.Skip(err) // not every system has all of 127.0.0.0/8
		}
		all = append(all, l)
	}
	s := newListeners(all)
	for _, l := range all {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		in, err := s.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if in.LocalAddr().String() != l.Addr().String() {
			t.Errorf("accepted on %v, dialled %v", in.LocalAddr(), l.Addr())
		}
		in.Close()
	}
	waits := make(chan error)
	go func() { _, err := s.Accept(); waits <- err }()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waits; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept ends with %v", err)
	}
	if err := s.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := net.Dial("tcp", all[1].Addr().String()); err == nil {
		t.Error("it still listens")
	}
}

// On a host's interface an echo request goes by the host's own sockets.
func TestHostPing(t *testing.T) {
	n := &Node{}
	for _, a := range []string{"127.0.0.1", "::1"} {
		to := netip.MustParseAddr(a)
		c, _, err := pingSocket(to.Is4())
		if err != nil {
			t.Skip(err) // neither sockets for it nor the right to raw ones
		}
		c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if rtt, err := n.ping(ctx, to); err != nil || rtt <= 0 {
			t.Errorf("%s: %v, %v", a, rtt, err)
		}
		cancel()
	}
}

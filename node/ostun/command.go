//go:build !linux

package ostun

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/tun"
)

// openDriver makes an interface that is set by running the system's own commands.
func openDriver(name string) (*Device, error) {
	inner, err := tun.CreateTUN(name, MinMTU)
	if err != nil {
		return nil, fmt.Errorf("cannot make the network interface %s: %w; %s", name, err, needs)
	}
	if name, err = inner.Name(); err != nil { // the system may have chosen
		_ = inner.Close()
		return nil, err
	}
	return &Device{Device: inner, sys: &commands{name: name}}, nil
}

// commands sets an interface by running programs. It is as it was set: it was made new, and goes with its process.
type commands struct {
	name string
	now  state
}

func (c *commands) ipv6() bool           { return true }
func (c *commands) close()               {}
func (c *commands) have() (state, error) { return c.now, nil }

func (c *commands) do(o op) error {
	lines, err := command(c.name, o)
	if err != nil {
		return err
	}
	for _, argv := range lines {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
		}
	}
	c.now.apply(o)
	return nil
}

// apply notes a step that was done.
func (s *state) apply(o op) {
	switch o.verb {
	case addRoute:
		s.routes = append(s.routes, o.route)
	case delRoute:
		s.routes = slices.DeleteFunc(s.routes, func(r route) bool { return r == o.route })
	case addAddr:
		s.addrs = append(s.addrs, o.addr)
	case delAddr:
		s.addrs = slices.DeleteFunc(s.addrs, func(a netip.Addr) bool { return a == o.addr })
	case setMTU:
		s.mtu = o.mtu
	case setUp:
		s.up = true
	}
	s.sort()
}

// errRules says that routes beyond the mesh's own need what is there on Linux only, so far.
var errRules = fmt.Errorf("routes to other networks by way of peers are for Linux only, so far: %w", errors.ErrUnsupported)

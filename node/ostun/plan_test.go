package ostun

import (
	"net/netip"
	"strings"
	"testing"
)

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var mesh = Config{Addrs: addrs("100.64.0.1", "fd7a::1"), Mesh: prefixes("100.64.0.0/10", "fd7a::/48")}

// What it takes to get from one Config to the next, starting with a new interface.
func TestPlan(t *testing.T) {
	exit := mesh
	exit.Routes = prefixes("0.0.0.0/0", "::/0")
	subnet := mesh
	subnet.Routes = prefixes("10.1.0.0/16")
	moved := mesh
	moved.Addrs = addrs("100.64.0.2", "fd7a::1")
	large := mesh
	large.MTU = 8920
	paths, shrunk := large, large
	paths.Paths = map[netip.Addr]int{addr("100.64.0.9"): 8912, addr("fd7a::9"): 8912, addr("100.64.0.8"): 1220, addr("fd7a::8"): 1220}
	shrunk.Paths = map[netip.Addr]int{addr("100.64.0.9"): 1440}
	for _, c := range []struct {
		name     string
		from, to Config
		v4only   bool
		want     string
	}{
		{"new", Config{}, mesh, false, `
			set up
			add address 100.64.0.1
			add address fd7a::1
			add route 100.64.0.0/10 src 100.64.0.1
			add route fd7a::/48 src fd7a::1`},
		{"new without IPv6", Config{}, mesh, true, `
			set up
			add address 100.64.0.1
			add route 100.64.0.0/10 src 100.64.0.1`},
		{"nothing", mesh, mesh, false, ``},
		{"larger MTU", mesh, large, false, `
			delete route 100.64.0.0/10 src 100.64.0.1
			delete route fd7a::/48 src fd7a::1
			set MTU 8920
			add route 100.64.0.0/10 src 100.64.0.1 mtu 1280
			add route fd7a::/48 src fd7a::1 mtu 1280`},
		{"a path is found to carry more, one less", large, paths, false, `
			add route 100.64.0.8/32 src 100.64.0.1 mtu 1220
			add route 100.64.0.9/32 src 100.64.0.1 mtu 8912
			add route fd7a::9/128 src fd7a::1 mtu 8912`},
		{"it shrinks", paths, shrunk, false, `
			delete route 100.64.0.8/32 src 100.64.0.1 mtu 1220
			delete route 100.64.0.9/32 src 100.64.0.1 mtu 8912
			delete route fd7a::9/128 src fd7a::1 mtu 8912
			add route 100.64.0.9/32 src 100.64.0.1 mtu 1440`},
		{"another address", mesh, moved, false, `
			delete route 100.64.0.0/10 src 100.64.0.1
			delete address 100.64.0.1
			add address 100.64.0.2
			add route 100.64.0.0/10 src 100.64.0.2`},
		{"exit chosen", mesh, exit, false, `
			add route 0.0.0.0/0 src 100.64.0.1 in its own table
			add route ::/0 src fd7a::1 in its own table
			add rule IPv4 to the main table
			add rule IPv4 to its own table
			add rule IPv6 to the main table
			add rule IPv6 to its own table`},
		{"exit left for a subnet", exit, subnet, false, `
			delete rule IPv6 to its own table
			delete rule IPv6 to the main table
			delete route 0.0.0.0/0 src 100.64.0.1 in its own table
			delete route ::/0 src fd7a::1 in its own table
			add route 10.1.0.0/16 src 100.64.0.1 in its own table`},
		{"all away", subnet, Config{}, false, `
			delete rule IPv4 to its own table
			delete rule IPv4 to the main table
			delete route 100.64.0.0/10 src 100.64.0.1
			delete route fd7a::/48 src fd7a::1
			delete route 10.1.0.0/16 src 100.64.0.1 in its own table
			delete address 100.64.0.1
			delete address fd7a::1`},
	} {
		t.Run(c.name, func(t *testing.T) {
			have, err := want(c.from, !c.v4only)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.from.Addrs) == 0 {
				have.up = false // as it is made
			}
			to, err := want(c.to, !c.v4only)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range plan(have, to) {
				if len(c.to.Addrs) == 0 && o.verb == setUp {
					continue
				}
				got = append(got, o.String())
			}
			if w := strings.ReplaceAll(strings.TrimSpace(c.want), "\t", ""); strings.Join(got, "\n") != w {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), w)
			}
		})
	}
}

func TestWantRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		c    Config
		err  string
	}{
		{"MTU below IPv6's", Config{MTU: 1279}, "MTU 1279"},
		{"MTU above IPv4's", Config{MTU: 65536}, "MTU 65536"},
		{"host bits", Config{Addrs: mesh.Addrs, Mesh: prefixes("100.64.0.1/10")}, "not the prefix of a network"},
		{"no prefix", Config{Addrs: mesh.Addrs, Routes: []netip.Prefix{{}}}, "not the prefix of a network"},
	} {
		if _, err := want(c.c, true); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
	}
	// Where this host has no address from, nothing leads.
	if s, err := want(Config{Addrs: addrs("100.64.0.1"), Mesh: mesh.Mesh, Routes: prefixes("::/0")}, true); err != nil || len(s.routes) != 1 || len(s.rules) != 0 {
		t.Errorf("%+v, %v: want one route and no rules", s, err)
	}
}

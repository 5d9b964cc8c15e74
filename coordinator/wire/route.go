package wire

import (
	"fmt"
	"net/netip"
	"slices"
)

// special are the prefixes that no route may touch but an exit's /0, which does not carry them either: this network,
// loopback, link-local, multicast, reserved (RFC 6890), IPv4 inside IPv6.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("::/64"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// CheckRoute says what is wrong with a prefix as a route, or returns nil. mesh are the mesh's own addresses, of which
// each is one node's: a route that touched them would take packets from nodes.
func CheckRoute(r netip.Prefix, mesh []netip.Prefix) error {
	switch {
	case !r.IsValid() || r.Addr().Is4In6():
		return fmt.Errorf("%v is no prefix: write it as 10.33.0.0/16 or fd00:33::/48", r)
	case r != r.Masked():
		return fmt.Errorf("%v has bits behind its length: write %v", r, r.Masked())
	case r.Bits() == 0:
		return nil
	}
	if slices.ContainsFunc(mesh, r.Overlaps) {
		return fmt.Errorf("%v overlaps the addresses of the network itself, which no node carries for others", r)
	}
	if i := slices.IndexFunc(special, r.Overlaps); i >= 0 {
		return fmt.Errorf("%v overlaps %v, which no node carries for others; for all of the internet, be an exit", r, special[i])
	}
	return nil
}

// CheckRoutes is CheckRoute of each, of their number, and for one that is there twice.
func CheckRoutes(rs, mesh []netip.Prefix) error {
	if len(rs) > MaxRoutes {
		return fmt.Errorf("%d routes are more than a node may carry, %d: join neighbours to wider ones", len(rs), MaxRoutes)
	}
	for i, r := range rs {
		if err := CheckRoute(r, mesh); err != nil {
			return err
		}
		if slices.Contains(rs[:i], r) {
			return fmt.Errorf("%v is there twice", r)
		}
	}
	return nil
}

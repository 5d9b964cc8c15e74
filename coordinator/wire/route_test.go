package wire

import (
	"net/netip"
	"strings"
	"testing"
)

func TestCheckRoute(t *testing.T) {
	mesh := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd68:6564:6765::/48")}
	for route, want := range map[string]string{
		"10.33.0.0/16": "", "10.0.0.0/8": "", "192.0.2.7/32": "", "fd00:33::/48": "", "0.0.0.0/0": "", "::/0": "", "2000::/3": "",
		"10.33.0.1/16":        "write 10.33.0.0/16",
		"100.64.0.0/10":       "network itself", // all of it
		"100.64.7.0/24":       "network itself", // within
		"100.0.0.0/8":         "network itself", // around
		"fd68:6564::/32":      "network itself",
		"0.0.0.0/1":           "network itself", // an exit by halves
		"128.0.0.0/1":         "overlaps 169.254.0.0/16",
		"8000::/1":            "network itself",
		"169.254.169.254/32":  "overlaps 169.254.0.0/16",
		"127.0.0.0/8":         "overlaps 127.0.0.0/8",
		"224.0.0.0/24":        "overlaps 224.0.0.0/3",
		"::1/128":             "overlaps ::/64",
		"fe80::/64":           "overlaps fe80::/10",
		"ff02::/16":           "overlaps ff00::/8",
		"::ffff:10.0.0.0/104": "no prefix",
	} {
		err := CheckRoute(netip.MustParsePrefix(route), mesh)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", route, err, want)
		}
	}
	if CheckRoute(netip.Prefix{}, mesh) == nil {
		t.Error("the zero prefix is a route")
	}
}

func TestCheckRoutes(t *testing.T) {
	var many []netip.Prefix
	for i := range MaxRoutes + 1 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	if err := CheckRoutes(many[:MaxRoutes], nil); err != nil {
		t.Error(err)
	}
	if CheckRoutes(many, nil) == nil || CheckRoutes([]netip.Prefix{many[0], many[1], many[0]}, nil) == nil {
		t.Error("too many, or one twice, are taken")
	}
}

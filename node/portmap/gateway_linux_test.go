package portmap

import (
	"net/netip"
	"strings"
	"testing"
)

func TestDefaultRoute(t *testing.T) {
	table := `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
wlan0	00000000	0201A8C0	0003	0	0	600	00000000	0	0	0
eth0	00000000	0101A8C0	0003	0	0	100	00000000	0	0	0
tun0	00000000	00000000	0001	0	0	1	00000000	0	0	0
eth0	0000A8C0	00000000	0001	0	0	100	0000FFFF	0	0	0
`
	router, ifname, ok := defaultRoute(strings.NewReader(table))
	if want := netip.MustParseAddr("192.168.1.1"); !ok || router != want || ifname != "eth0" {
		t.Errorf("%s by %s, %v", router, ifname, ok)
	}
	for _, bad := range []string{"", "eth0 00000000 zz 0003 0 0 0 00000000", "eth0 00000000 0101 0003 0 0 0 00000000"} {
		if _, _, ok := defaultRoute(strings.NewReader(bad)); ok {
			t.Errorf("a gateway in %q", bad)
		}
	}
}

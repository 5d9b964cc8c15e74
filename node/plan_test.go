package node

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

var (
	someKey = key.ExchangePublic(key.NewNode())
	someDay = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

func TestPlan(t *testing.T) {
	m := testMap(someKey)
	m.Peers[0].Expires = someDay.Add(time.Hour)
	p, err := planFor(m, someKey, nil, someDay, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.filter.Peers) != 2 || len(p.wg) != 2 || len(p.paths) != 2 || !p.next.Equal(someDay.Add(time.Hour)) {
		t.Errorf("got %d, %d, %d peers, next %v", len(p.filter.Peers), len(p.wg), len(p.paths), p.next)
	}
	for _, a := range p.wg[m.Peers[1].Key] {
		if a.Bits() == 0 {
			t.Error("an exit route was taken without being chosen")
		}
	}

	p, err = planFor(m, someKey, nil, someDay.Add(time.Hour), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, there := p.wg[m.Peers[0].Key]; there || len(p.filter.Peers) != 1 || len(p.paths) != 1 || !p.next.IsZero() {
		t.Errorf("an expired peer is still in %+v", p)
	}
}

func TestPlanRefusesAnothersMap(t *testing.T) {
	if _, err := planFor(testMap(someKey), key.ExchangePublic(key.NewNode()), nil, someDay, false); err == nil {
		t.Error("accepted")
	}
}

func TestWireGuardDiff(t *testing.T) {
	a, b := netip.MustParsePrefix("100.64.0.1/32"), netip.MustParsePrefix("100.64.0.2/32")
	k := func(n byte) key.NodePublic { return key.NodePublicFromRaw([32]byte{n}) }
	hex := func(n string) string { return n + strings.Repeat("0", 62) }
	type peers = map[key.NodePublic][]netip.Prefix
	for _, c := range []struct {
		name     string
		old, new peers
		want     string
	}{
		{"nothing", peers{k(1): {a}}, peers{k(1): {a}}, ""},
		{"a first", nil, peers{k(1): {a, b}}, "public_key=" + hex("01") + "\nendpoint=" + hex("01") + "\nallowed_ip=100.64.0.1/32\nallowed_ip=100.64.0.2/32\n"},
		{"one more", peers{k(1): {a}}, peers{k(1): {a}, k(2): {b}}, "public_key=" + hex("02") + "\nendpoint=" + hex("02") + "\nallowed_ip=100.64.0.2/32\n"},
		{"one less", peers{k(1): {a}, k(2): {b}}, peers{k(1): {a}}, "public_key=" + hex("02") + "\nremove=true\n"},
		{"new address", peers{k(1): {a}}, peers{k(1): {b}}, "public_key=" + hex("01") + "\nreplace_allowed_ips=true\nallowed_ip=100.64.0.2/32\n"},
		{"new key", peers{k(1): {a}}, peers{k(2): {a}}, "public_key=" + hex("02") + "\nendpoint=" + hex("02") + "\nallowed_ip=100.64.0.1/32\npublic_key=" + hex("01") + "\nremove=true\n"},
	} {
		if got := wgDiff(c.old, c.new); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func TestParseCounters(t *testing.T) {
	in := "private_key=" + strings.Repeat("11", 32) + "\nlisten_port=1\n" +
		"public_key=" + strings.Repeat("22", 32) + "\npreshared_key=" + strings.Repeat("00", 32) + "\nlast_handshake_time_sec=5\n" +
		"last_handshake_time_nsec=6\ntx_bytes=7\nrx_bytes=8\n" +
		"public_key=" + strings.Repeat("33", 32) + "\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=9\nrx_bytes=0\n"
	got := parseCounters([]byte(in))
	two, three := [32]byte{}, [32]byte{}
	for i := range two {
		two[i], three[i] = 0x22, 0x33
	}
	if c := got[key.NodePublicFromRaw(two)]; c.tx != 7 || c.rx != 8 || !c.handshake.Equal(time.Unix(5, 6)) {
		t.Errorf("first peer: %+v", c)
	}
	if c := got[key.NodePublicFromRaw(three)]; c.tx != 9 || !c.handshake.IsZero() || len(got) != 2 {
		t.Errorf("second peer: %+v of %d", c, len(got))
	}
	parseCounters([]byte("public_key=zz\ntx_bytes=1\n"))
}

func TestNearest(t *testing.T) {
	names := map[string]*wire.Peer{"web": nil, "database": nil, "web2": nil}
	for typed, want := range map[string]string{"wbe": "", "databse": "database", "datbaes": "", "web3": "web", "xyz": "", "": "", strings.Repeat("a", 70): ""} {
		if got := nearest(typed, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", typed, got, want)
		}
	}
}

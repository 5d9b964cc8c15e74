package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/node/key"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func nodeKey(i int) key.NodePublic { return key.NodePublicFromRaw([32]byte{31: byte(i), 0: 9}) }

func peer(i int) Peer {
	return Peer{
		Node: acl.Node{
			ID: acl.NodeID(i), Name: fmt.Sprintf("n%d", i), User: "alice@example.com",
			Addrs: []netip.Addr{
				netip.AddrFrom4([4]byte{100, 64, 0, byte(i)}),
				netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x68, 2: 0x65, 3: 0x64, 4: 0x67, 5: 0x65, 15: byte(i)}),
			},
		},
		Key:     nodeKey(i),
		Expires: time.Unix(1_900_000_000, 0),
	}
}

func exampleMap() *Map {
	self := peer(1)
	self.User, self.Tags = "", []string{"tag:web"}
	web := peer(2)
	web.Routes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.0.0.0/8")}
	return &Map{
		Revision: 7,
		Self: Self{Peer: self, Domain: "hedge.internal",
			Prefixes: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd68:6564:6765::/48")}},
		Peers: []Peer{web, peer(3)},
		Rules: []acl.Rule{{
			Pos: acl.Pos{File: "acl.hujson", Line: 12, Col: 5}, Path: "acls[3]", Action: acl.Accept, Src: []string{"group:eng"},
			Dst:    []acl.Target{{Set: "tag:web", Ports: []acl.PortRange{{First: 80, Last: 80}, acl.AllPorts}}},
			Protos: []uint8{6}, Expires: time.Unix(1_800_000_000, 0),
		}},
		Sets: map[string]acl.Set{
			"group:eng": {Nodes: []acl.NodeID{2, 3}},
			"tag:web":   {Nodes: []acl.NodeID{1}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
			"*":         {Any: true},
		},
		Relays: []Relay{{ID: 1, Key: key.RelayPublic(key.PublicOf(fixedRelay())), URLs: []string{"https://r:7443"}, STUN: []string{"r:7443"}}},
	}
}

func fixedRelay() key.RelayPrivate {
	k, err := key.ParseRelayPrivate("relay-private:" + strings.Repeat("5a", 32))
	if err != nil {
		panic(err)
	}
	return k
}

func messages() map[string]any {
	m := exampleMap()
	return map[string]any{
		"hello": &Hello{Version: 1, Node: nodeKey(1), Disco: key.DiscoPublicFromRaw([32]byte{1}), Name: "web", Enrol: "secret",
			Revision: 3, Have: Hashes{"self": bytes.Repeat([]byte{7}, 32)}, OS: "linux", Software: "hedge/1", Ephemeral: true},
		"ack":       &Ack{Revision: 812},
		"here":      &Here{Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7"), netip.MustParseAddrPort("[2001:db8::1]:8")}, Relay: 2},
		"logout":    &Logout{},
		"advertise": &Advertise{Routes: []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16"), netip.MustParsePrefix("::/0")}},
		"reset":     Diff(nil, m),
		"delta": &Delta{From: 7, Revision: 8, PeersGone: []acl.NodeID{3}, SetsGone: []string{"*"},
			Members: []Membership{{Set: "group:eng", Add: []acl.NodeID{9}, Remove: []acl.NodeID{3}}}},
		"where":   &Where{Peers: []Presence{{ID: 2, Online: true, Relay: 1, LastSeen: time.Unix(1_700_000_000, 0)}}},
		"ticket":  &Ticket{Signed: []byte("signed")},
		"refused": &Refused{Code: RefusedKeyUsed, Message: "the join key was used"},
	}
}

// The bytes on the wire are part of the protocol: a golden that changes is a change of protocol.
func TestGolden(t *testing.T) {
	for name, msg := range messages() {
		b, err := Encode(msg)
		if err != nil {
			t.Fatal(name, err)
		}
		file := filepath.Join("testdata", name+".hex")
		got := hex.EncodeToString(b) + "\n"
		if *update {
			os.MkdirAll("testdata", 0o755)
			os.WriteFile(file, []byte(got), 0o644)
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s encodes as\n%swant\n%s", name, got, want)
		}
		back, err := Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		again, err := Encode(back)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s does not survive a round trip: %v", name, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	nest := append([]byte{byte(tagHere)}, bytes.Repeat([]byte{0x81}, 1000)...)
	for name, b := range map[string][]byte{
		"nothing":          {},
		"unknown tag":      {99, 0xa0},
		"no value":         {byte(tagAck)},
		"trailing bytes":   {byte(tagAck), 0xa1, 1, 2, 0},
		"duplicate key":    {byte(tagAck), 0xa2, 1, 2, 1, 3},
		"a huge array":     {byte(tagHere), 0xa1, 1, 0x9b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"an endless array": {byte(tagHere), 0xa1, 1, 0x9f},
		"a huge string":    {byte(tagTicket), 0xa1, 1, 0x5b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"nesting":          nest,
		"invalid UTF-8":    {byte(tagRefused), 0xa1, 1, 0x61, 0xff},
		"a short key":      {byte(tagHello), 0xa1, 2, 0x41, 0},
		"a tag":            {byte(tagAck), 0xa1, 1, 0xc2, 0x41, 1},
		"an unknown field of what a coordinator says": {byte(tagTicket), 0xa1, 0x18, 99, 1},
	} {
		if msg, err := Decode(b); err == nil {
			t.Errorf("%s: decoded as %+v", name, msg)
		}
	}
	if _, err := Decode([]byte{byte(tagAck), 0xa2, 1, 2, 0x18, 99, 1}); err != nil {
		t.Errorf("an unknown field of what a node says must be skipped: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, msg := range messages() {
		b, _ := Encode(msg)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		msg, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Encode(msg)
		if err != nil {
			t.Fatalf("%T decodes and does not encode: %v", msg, err)
		}
		if d, ok := msg.(*Delta); ok {
			if m, err := exampleMap().Apply(d); err == nil && m.check() != nil {
				t.Fatal("Apply made a map that does not check")
			}
		}
		if _, err := Decode(again); err != nil {
			t.Fatalf("%T encodes as what does not decode: %v", msg, err)
		}
	})
}

func FuzzDecodeMap(f *testing.F) {
	b, err := EncodeMap(exampleMap())
	if err != nil {
		f.Fatal(err)
	}
	head := len(mapMagic) + sha256.Size
	f.Add(b[:head], b[head:])
	f.Fuzz(func(t *testing.T, front, rest []byte) {
		sum := sha256.Sum256(rest) // without a right one nothing is read
		for _, b := range [][]byte{append(front, rest...), append(append([]byte(mapMagic), sum[:]...), rest...)} {
			m, err := DecodeMap(b)
			if err != nil {
				continue
			}
			if m.check() != nil {
				t.Fatal("a map that does not check")
			}
			if again, err := EncodeMap(m); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			} else if _, err := DecodeMap(again); err != nil {
				t.Fatalf("what was read and written cannot be read: %v", err)
			}
		}
	})
}

func TestMapOnDisk(t *testing.T) {
	m := exampleMap().See(&Where{Peers: []Presence{{ID: 2, Online: true}}})
	m.Ticket = Ticket{Signed: []byte("t")}
	b, err := EncodeMap(m)
	if err != nil {
		t.Fatal(err)
	}
	back, err := DecodeMap(b)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := EncodeMap(back); !bytes.Equal(again, b) {
		t.Error("the map does not survive the disk")
	}
	for i := range b {
		bad := slices.Clone(b)
		bad[i] ^= 0x40
		if _, err := DecodeMap(bad); err == nil {
			t.Fatalf("a flipped bit in byte %d was not seen", i)
		}
		if _, err := DecodeMap(b[:i]); err == nil {
			t.Fatalf("a file cut at %d was taken", i)
		}
	}
}

func equalMaps(t interface{ Fatal(...any) }, a, b *Map) bool {
	x, err1 := a.Hashes()
	y, err2 := b.Hashes()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return a.Revision == b.Revision && reflect.DeepEqual(x, y)
}

// genMap makes a consistent Map.
func genMap(revision uint64) *rapid.Generator[*Map] {
	return rapid.Custom(func(t *rapid.T) *Map {
		m := exampleMap()
		m.Revision, m.Peers, m.Rules, m.Sets = revision, nil, nil, map[string]acl.Set{}
		if rapid.Bool().Draw(t, "renamed") {
			m.Self.Name = "other"
		}
		ids := rapid.SliceOfDistinct(rapid.IntRange(2, 12), rapid.ID[int]).Draw(t, "peers")
		slices.Sort(ids)
		known := []acl.NodeID{1}
		for _, id := range ids {
			p := peer(id)
			if rapid.Bool().Draw(t, "tagged") {
				p.User, p.Tags = "", []string{"tag:x"}
			}
			if rapid.Bool().Draw(t, "rotated") {
				p.Key = nodeKey(100 + id)
			}
			m.Peers, known = append(m.Peers, p), append(known, p.ID)
		}
		names := rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d", "*"}), rapid.ID[string]).Draw(t, "sets")
		for _, name := range names {
			s := acl.Set{Any: rapid.Bool().Draw(t, "any")}
			s.Nodes = rapid.SliceOfDistinct(rapid.SampledFrom(known), rapid.ID[acl.NodeID]).Draw(t, "members")
			slices.Sort(s.Nodes)
			if rapid.Bool().Draw(t, "prefixed") {
				s.Prefixes = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			}
			m.Sets[name] = s
		}
		if len(names) > 0 {
			for i := range rapid.IntRange(0, 3).Draw(t, "rules") {
				m.Rules = append(m.Rules, acl.Rule{Path: fmt.Sprintf("acls[%d]", i), Action: acl.Accept,
					Src: []string{rapid.SampledFrom(names).Draw(t, "src")},
					Dst: []acl.Target{{Set: rapid.SampledFrom(names).Draw(t, "dst"), Ports: []acl.PortRange{acl.AllPorts}}}})
			}
		}
		if rapid.Bool().Draw(t, "no relays") {
			m.Relays = nil
		}
		return m
	})
}

// What a node has after any change is what the coordinator meant, whether it came as a difference, as the sections
// it lacked, or whole.
func TestDiffApply(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old, new := genMap(3).Draw(t, "old"), genMap(4).Draw(t, "new")
		before, _ := EncodeMap(old)
		have, err := old.Hashes()
		if err != nil {
			t.Fatal(err)
		}
		missing, err := Missing(old.Revision, have, new)
		if err != nil {
			t.Fatal(err)
		}
		for name, d := range map[string]*Delta{"diff": Diff(old, new), "missing": missing, "reset": Diff(nil, new)} {
			b, err := Encode(d)
			if err != nil {
				t.Fatal(err)
			}
			sent, err := Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			got, err := old.Apply(sent.(*Delta))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !equalMaps(t, got, new) {
				t.Fatalf("%s: got %+v\nwant %+v", name, got, new)
			}
		}
		if after, _ := EncodeMap(old); !bytes.Equal(before, after) {
			t.Fatal("Apply changed the map it was given")
		}
		same := *old
		if d := Diff(old, &same); !d.Empty() {
			t.Fatalf("no difference gives %+v", d)
		}
	})
}

// One node that joins a large set costs its record and a line, and no rule.
func TestDiffIsSmall(t *testing.T) {
	m := exampleMap()
	m.Peers, m.Sets["group:eng"] = nil, acl.Set{}
	var members []acl.NodeID
	for i := 2; i < 200; i++ {
		m.Peers, members = append(m.Peers, peer(i)), append(members, acl.NodeID(i))
	}
	m.Sets["group:eng"] = acl.Set{Nodes: members}
	n := *m
	n.Revision++
	n.Peers = append(slices.Clone(m.Peers), peer(200))
	n.Sets = map[string]acl.Set{"group:eng": {Nodes: append(slices.Clone(members), 200)}, "tag:web": m.Sets["tag:web"], "*": m.Sets["*"]}
	d := Diff(m, &n)
	if len(d.Peers) != 1 || len(d.Members) != 1 || d.Sets != nil || d.Rules != nil || d.Self != nil {
		t.Fatalf("a join costs %+v", d)
	}
	b, err := Encode(d)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 160 {
		t.Errorf("a join costs %d bytes, want at most 160", len(b))
	}
}

// Diff compares field by field. Each field of each durable type must count.
func TestDiffSeesEveryField(t *testing.T) {
	for _, path := range leaves(reflect.ValueOf(exampleMap()).Elem(), nil) {
		switch reflect.TypeFor[Map]().Field(path[0]).Name {
		case "Revision", "Presence", "Ticket":
			continue
		}
		a, b := fullMap(), fullMap()
		touch(reflect.ValueOf(b).Elem(), path)
		if Diff(a, b).Empty() {
			t.Errorf("a change of %s is not seen", describe(reflect.TypeFor[Map](), path))
		}
	}
}

// fullMap has something in every field.
func fullMap() *Map {
	m := exampleMap()
	m.Self.Routes = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
	m.Peers = m.Peers[:1]
	m.Peers[0].Tags = []string{"tag:a"}
	m.Sets = map[string]acl.Set{"s": {Any: true, Nodes: []acl.NodeID{1}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	return m
}

// leaves lists the paths of field indices to everything that holds a value; -1 steps into an element.
func leaves(v reflect.Value, at []int) (out [][]int) {
	switch v.Type() {
	case reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.Prefix](), reflect.TypeFor[time.Time](),
		reflect.TypeFor[key.NodePublic](), reflect.TypeFor[key.RelayPublic](), reflect.TypeFor[key.DiscoPublic]():
		return [][]int{slices.Clone(at)}
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("cbor") == "-" {
				continue // not sent
			}
			out = append(out, leaves(v.Field(i), append(at, i))...)
		}
		return out
	case reflect.Slice, reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		return append(leaves(e, append(at, -1)), slices.Clone(at))
	}
	return [][]int{slices.Clone(at)}
}

func touch(v reflect.Value, path []int) {
	if len(path) == 0 {
		switch v.Kind() {
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Uint8, reflect.Uint16, reflect.Uint64:
			v.SetUint(v.Uint() + 1)
		case reflect.Int:
			v.SetInt(v.Int() + 1)
		default:
			v.Set(reflect.Zero(v.Type()))
		}
		return
	}
	if path[0] >= 0 {
		touch(v.Field(path[0]), path[1:])
		return
	}
	if v.Kind() == reflect.Map {
		for _, k := range v.MapKeys() {
			e := reflect.New(v.Type().Elem()).Elem()
			e.Set(v.MapIndex(k))
			touch(e, path[1:])
			v.SetMapIndex(k, e)
		}
		return
	}
	touch(v.Index(0), path[1:])
}

func describe(t reflect.Type, path []int) string {
	s := t.Name()
	for _, i := range path {
		if i < 0 {
			t, s = t.Elem(), s+"[]"
			continue
		}
		s, t = s+"."+t.Field(i).Name, t.Field(i).Type
	}
	return s
}

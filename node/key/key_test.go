package key

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestTextRoundTrip(t *testing.T) {
	m := PublicOf(NewMachine())
	b, err := json.Marshal(map[MachinePublic]MachinePublic{m: m})
	if err != nil {
		t.Fatal(err)
	}
	var back map[MachinePublic]MachinePublic
	if err := json.Unmarshal(b, &back); err != nil || back[m] != m {
		t.Fatalf("round trip of %s: %v, %v", b, back, err)
	}
}

func TestParseRefuses(t *testing.T) {
	node := ExchangePublic(NewNode()).String()
	for _, bad := range []string{"", "machine:", node, "machine:" + strings.Repeat("g", 64), "machine:" + strings.Repeat("a", 63),
		strings.TrimPrefix(node, "node:")} {
		var m MachinePublic
		if err := m.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken for a machine key", bad)
		}
	}
	if _, err := ParseMachinePrivate("machine-private:" + strings.Repeat("0", 64)); err == nil {
		t.Error("an all-zero private key was taken")
	}
	var n NodePublic
	if err := n.UnmarshalBinary(make([]byte, 31)); err == nil {
		t.Error("31 bytes were taken for a key")
	}
}

// A private key must not appear by any of the ways a value usually gets into a log.
func TestPrivateNeverPrints(t *testing.T) {
	p := NewNode()
	digits := WireGuardHex(p)
	holder := struct {
		Name string
		Key  NodePrivate
	}{"web", p}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		for _, v := range []any{p, &p, holder, []NodePrivate{p}} {
			if s := fmt.Sprintf(verb, v); strings.Contains(strings.ToLower(s), digits[:16]) {
				t.Errorf("%s of %T prints the key", verb, v)
			}
		}
	}
	if b, err := json.Marshal(holder); err == nil {
		t.Errorf("a private key marshals to JSON: %d bytes", len(b))
	}
	back, err := ParseNodePrivate(p.Secret())
	if err != nil || WireGuardHex(back) != digits {
		t.Errorf("Secret does not read back: %v", err)
	}
}

func TestSignatureBindsContext(t *testing.T) {
	p := NewControl()
	sig := Sign(p, "a", []byte("m"))
	if !Verify(PublicOf(p), "a", []byte("m"), sig) {
		t.Error("own signature refused")
	}
	if Verify(PublicOf(p), "b", []byte("m"), sig) || Verify(PublicOf(p), "a", []byte("n"), sig) || Verify(ControlPublic{}, "a", []byte("m"), sig) {
		t.Error("a signature was good for another context, message or key")
	}
}

func TestSharedAgrees(t *testing.T) {
	a, b := NewDisco(), NewDisco()
	x, err1 := Shared(a, ExchangePublic(b))
	y, err2 := Shared(b, ExchangePublic(a))
	if err1 != nil || err2 != nil || x != y {
		t.Fatal("the two ends disagree", err1, err2)
	}
	if _, err := Shared(a, DiscoPublic{}); err == nil {
		t.Error("a low-order point gave a secret")
	}
}

package wire

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hedge-mesh/hedge/node/key"
)

func exampleJoin() Join {
	return Join{URLs: []string{"https://hedge.example.com:7443", "https://192.0.2.1:7443"},
		Pin: key.ControlPublicFromRaw([32]byte{1, 2, 3}), Key: "k-0123456789abcdef"}
}

func TestJoinRoundTrip(t *testing.T) {
	j := exampleJoin()
	s := j.String()
	for name, in := range map[string]string{"as it is": s, "wrapped": s[:40] + "\n  " + s[40:] + "\n", "shouted": strings.ToUpper(s)} {
		got, err := ParseJoin(in)
		if err != nil || got.Key != j.Key || got.Pin != j.Pin || len(got.URLs) != 2 || got.URLs[0] != j.URLs[0] {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if out := fmt.Sprintf(verb, j); strings.Contains(out, j.Key) || strings.Contains(out, s[10:20]) {
			t.Errorf("%s shows the key", verb)
		}
	}
}

// A typo anywhere is told as a typo, and never as a key that is wrong or has expired.
func TestJoinTypos(t *testing.T) {
	s := exampleJoin().String()
	for i := len(joinPrefix); i < len(s); i++ {
		for _, bad := range []string{s[:i] + "0" + s[i+1:], s[:i] + string('a'+(s[i]-'a'+1)%26) + s[i+1:], s[:i] + s[i+1:], s[:i]} {
			if bad == s {
				continue
			}
			_, err := ParseJoin(bad)
			if err == nil {
				t.Fatalf("a typo at %d was taken", i)
			}
			if !strings.Contains(err.Error(), "typo") {
				t.Fatalf("a typo at %d: %v", i, err)
			}
			if strings.Contains(err.Error(), s[20:40]) {
				t.Fatal("the error shows the string")
			}
		}
	}
	for in, want := range map[string]string{
		"":                              "not a join string",
		"hello":                         "not a join string",
		"hedge2-abc":                    "another release",
		"hedge1-":                       "typo",
		strings.Repeat("a", maxJoin+1):  "too long",
		Join{URLs: []string{}}.String(): "names no coordinator",
		Join{URLs: []string{"ftp://x"}, Pin: exampleJoin().Pin}.String(): "bad URL",
	} {
		if _, err := ParseJoin(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %q", in, err, want)
		}
	}
}

func FuzzParseJoin(f *testing.F) {
	f.Add(exampleJoin().String())
	f.Fuzz(func(t *testing.T, s string) {
		j, err := ParseJoin(s)
		if err != nil {
			return
		}
		if k, err := ParseJoin(j.String()); err != nil || k.Key != j.Key || k.Pin != j.Pin {
			t.Fatalf("what was parsed does not parse: %v", err)
		}
	})
}

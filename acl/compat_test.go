package acl

import (
	"bufio"
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// compatWant is what the real service answered.
type compatWant struct {
	ID      string
	Suspect any // the capture contradicts itself
	Expect  struct {
		Error   *string
		Filters map[string][]map[string]any
		Peers   map[string]map[string]struct{ Routes []string }
		SSH     map[string]any
		Attrs   map[string][]string
	}
}

type compatGot struct {
	Error   *string
	Filters map[string][]map[string]any
	Peers   map[string]map[string][]string
	SSH     map[string]any
	Attrs   map[string][]string
}

// TestCompatCases compiles every captured policy and compares all that each node receives.
// With HEDGE_COMPAT_OUT set, the results are also written there, one a line, for the cases' own script.
func TestCompatCases(t *testing.T) {
	shared := os.Getenv("HEDGE_SHARED")
	if shared == "" {
		shared = filepath.Join("..", "..", "shared")
	}
	f, err := os.Open(filepath.Join(shared, "policy", "cases.jsonl"))
	if err != nil {
		t.Skipf("no captured policies: %v", err)
	}
	defer f.Close()
	var out bytes.Buffer
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 16<<20)
	cases := 0
	for ; sc.Scan(); cases++ {
		var want compatWant
		if err := json.Unmarshal(sc.Bytes(), &want); err != nil {
			t.Fatal(err)
		}
		b, err := CompatCase(sc.Bytes())
		if err != nil {
			t.Errorf("%s: %v", want.ID, err)
			continue
		}
		var m map[string]json.RawMessage
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		m["id"], _ = json.Marshal(want.ID)
		line, _ := json.Marshal(m)
		out.Write(append(line, '\n'))
		var got compatGot
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if want.Suspect == nil {
			t.Run(want.ID, func(t *testing.T) { compareCase(t, want, got) })
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d cases", cases)
	if name := os.Getenv("HEDGE_COMPAT_OUT"); name != "" {
		if err := os.WriteFile(name, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func compareCase(t *testing.T, want compatWant, got compatGot) {
	if (got.Error == nil) != (want.Expect.Error == nil) {
		t.Fatalf("error %v, want %v", got.Error, want.Expect.Error)
	}
	if got.Error != nil {
		return
	}
	for _, n := range slices.Sorted(maps.Keys(want.Expect.Filters)) {
		if diff := cmp.Diff(flatText(want.Expect.Filters[n]), flatText(got.Filters[n])); diff != "" {
			t.Errorf("filter of %s (-want +got)\n%s", n, diff)
		}
	}
	for n, peers := range want.Expect.Peers {
		routes := map[string][]string{}
		for p, v := range peers {
			routes[p] = v.Routes
		}
		if diff := cmp.Diff(routes, got.Peers[n]); diff != "" {
			t.Errorf("peers of %s (-want +got)\n%s", n, diff)
		}
	}
	for n, rules := range want.Expect.SSH {
		if diff := cmp.Diff(rules, got.SSH[n]); diff != "" {
			t.Errorf("ssh of %s (-want +got)\n%s", n, diff)
		}
	}
	for n, attrs := range want.Expect.Attrs {
		mine := slices.DeleteFunc(slices.Clone(got.Attrs[n]), func(a string) bool { return strings.HasPrefix(a, "https://tailscale.com/cap/") })
		if diff := cmp.Diff(attrs, mine); diff != "" {
			t.Errorf("attributes of %s (-want +got)\n%s", n, diff)
		}
	}
}

// flatText writes rules so that the order of rules, and of what is in them, does not count.
func flatText(rules []map[string]any) []string {
	out := []string{}
	for _, r := range rules {
		for _, k := range []string{"SrcIPs", "DstPorts", "IPProto"} {
			sortAny(r[k])
		}
		if caps, ok := r["CapGrant"].([]any); ok {
			for _, g := range caps {
				sortAny(g.(map[string]any)["Dsts"])
			}
		}
		b, _ := json.Marshal(r)
		out = append(out, string(b))
	}
	slices.Sort(out)
	return out
}

func sortAny(v any) {
	if l, ok := v.([]any); ok {
		slices.SortFunc(l, func(a, b any) int {
			x, _ := json.Marshal(a)
			y, _ := json.Marshal(b)
			return bytes.Compare(x, y)
		})
	}
}

// A case that cannot be read is an error, and a policy that cannot is a result.
func TestCompatCase(t *testing.T) {
	if _, err := CompatCase([]byte("{")); err == nil {
		t.Error("half a case was read")
	}
	b, err := CompatCase([]byte(`{"policy": "{", "nodes": []}`))
	if err != nil || !strings.Contains(string(b), `"error":"policy.hujson:1:2: `) {
		t.Errorf("%s, %v", b, err)
	}
	b, err = CompatCase([]byte(`{"policy": "{}", "prefixes": ["100.64.0.0/10"], "users": [{"name": "a", "email": "a@x"}],
		"nodes": [{"name": "n", "user": "a", "ipv4": "100.64.0.1"}]}`))
	want := `{"error":null,"filters":{"n":[{"SrcIPs":["100.115.94.0-100.127.255.255","100.64.0.0-100.115.91.255"],"DstPorts":[["*",0,65535]]}]},"peers":{"n":{}},"ssh":{"n":[]},"attrs":{"n":[]}}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v; want %s", b, err, want)
	}
}

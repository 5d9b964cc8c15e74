package acl

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestCompatCases compiles every captured policy and compares what is cheap to compare here: whether it is
// accepted, who sees whom, ssh rules and attributes. The filters are compared by meaning by the cases' own script.
// With HEDGE_COMPAT_OUT set, the results are written there, one a line, for that script.
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
	var out *os.File
	if name := os.Getenv("HEDGE_COMPAT_OUT"); name != "" {
		if out, err = os.Create(name); err != nil {
			t.Fatal(err)
		}
		defer out.Close()
	}
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 16<<20)
	cases, wrong := 0, 0
	for sc.Scan() {
		var want struct {
			ID      string
			Suspect any
			Expect  struct{ Error *string }
		}
		if err := json.Unmarshal(sc.Bytes(), &want); err != nil {
			t.Fatal(err)
		}
		cases++
		b, err := CompatCase(sc.Bytes())
		if err != nil {
			t.Errorf("%s: %v", want.ID, err)
			continue
		}
		if out != nil {
			var m map[string]json.RawMessage
			if err := json.Unmarshal(b, &m); err != nil {
				t.Fatal(err)
			}
			m["id"], _ = json.Marshal(want.ID)
			line, _ := json.Marshal(m)
			if _, err := out.Write(append(bytes.TrimSpace(line), '\n')); err != nil {
				t.Fatal(err)
			}
		}
		var got struct{ Error *string }
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if want.Suspect == nil && (got.Error == nil) != (want.Expect.Error == nil) {
			wrong++
			g, w := "", ""
			if got.Error != nil {
				g = *got.Error
			}
			if want.Expect.Error != nil {
				w = *want.Expect.Error
			}
			t.Errorf("%s: error %q, want %q", want.ID, g, w)
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d cases, %d wrong", cases, wrong)
}

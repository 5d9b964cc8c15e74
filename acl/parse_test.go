package acl

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the expected errors in testdata")

// TestErrors checks what people read when a file is wrong: every error, its place, its class, the caret, the hint.
func TestErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, name := range files {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(a.Files); i += 2 {
			in, want := a.Files[i], &a.Files[i+1]
			t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar")+"/"+in.Name, func(t *testing.T) {
				_, err := Parse("acl.hujson", in.Data, Options{})
				if err == nil {
					t.Fatal("no error")
				}
				got := Of(err).Render()
				if *update {
					want.Data = []byte(got)
					return
				}
				if diff := cmp.Diff(string(want.Data), got); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
			})
		}
		if *update {
			if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	deep := strings.Repeat("[", 640<<10)
	for _, tt := range []struct{ name, src, want string }{
		{"deep", deep, "acl.hujson:1:65: nested deeper than 64 levels [syntax]"},
		{"deep after a string", `{"a\"[": "` + strings.Repeat("[", 100) + `", "b": ` + deep, "acl.hujson:1:182: nested deeper"},
		{"deep in a comment is not deep", "{/*" + deep + "*/ \"acls\": []}", ""},
		{"deep in a line comment is not deep", "{//" + deep + "\n \"acls\": []}", ""},
		{"64 levels", strings.Repeat("[", 64) + strings.Repeat("]", 64), "must be an object"},
		{"large", "{" + strings.Repeat(" ", MaxSize) + "}", "more than the 1048576 allowed"},
		{"not text", "{\"acls\": [\"\xff\"]}", "acl.hujson:1:12: file is not UTF-8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("acl.hujson", []byte(tt.src), Options{})
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			for _, e := range Of(err) {
				if len(e.Line) > maxLine {
					t.Errorf("quoted line has %d bytes", len(e.Line))
				}
			}
		})
	}
}

// Errors that went over an admin's socket render as they did before.
func TestErrorsAsJSON(t *testing.T) {
	_, err := Parse("acl.hujson", []byte("{\n\t\"acls\": [{\"action\": \"allow\"}],\n}"), Options{})
	b, jerr := json.Marshal(Of(err))
	if jerr != nil {
		t.Fatal(jerr)
	}
	var es Errors
	if err := json.Unmarshal(b, &es); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Of(err).Render(), es.Render()); diff != "" {
		t.Error(diff)
	}
}

// A file with more errors than anybody reads is bounded in what it costs, and says how many there are.
func TestManyErrors(t *testing.T) {
	src := `{"acls": [{"action": "accept", "src": [` + strings.Repeat(`"tag:nobody", `, 50000) + `], "dst": ["*:*"]}]}`
	_, err := Parse("acl.hujson", []byte(src), Options{})
	es := Of(err)
	if len(es) != maxErrors || !strings.Contains(es[maxErrors-1].Hint, "49900 more errors") {
		t.Errorf("%d errors, the last %v", len(es), es[len(es)-1])
	}
}

func TestParseAccepts(t *testing.T) {
	for name, src := range map[string]string{
		"comments and commas":  "// hi\n{ /* x */ \"acls\": [ // y\n],}\n",
		"any case":             `{"ACLs": [], "Groups": {"group:a": []}, "tagowners": {"tag:a": []}}`,
		"ipv6 by last colon":   `{"acls": [{"action": "accept", "src": ["fd68::/16"], "dst": ["fd68::1:22", "[fd68::1]:22", "[fd68::]/64:80,443"]}]}`,
		"empty lists":          `{"acls": [{"action": "accept", "src": [], "dst": []}]}`,
		"tag cycles":           `{"tagOwners": {"tag:a": ["tag:b"], "tag:b": ["tag:a"]}, "acls": []}`,
		"spaces round names":   `{"tagOwners": {"tag:a": []}, "acls": [{"action": "accept", "src": [" tag:a "], "dst": ["*:*"]}]}`,
		"null is absent":       `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "proto": null}], "ssh": null}`,
		"ssh oddities":         `{"acls": [], "ssh": [{"action": " accept ", "src": [" autogroup:member "], "dst": ["autogroup:self"], "users": ["group:foo", " root "], "acceptEnv": ["**"]}]}`,
		"check period":         `{"acls": [], "ssh": [{"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"], "checkPeriod": "168h"}]}`,
		"falsy settings":       `{"acls": [], "disableIPv4": false, "OneCGNATRoute": "", "randomizeClientPort": false}`,
		"expiry":               `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "expires": "2030-01-02T03:04:05+01:00"}]}`,
		"members, the old way": `{"acls": [{"action": "accept", "src": ["autogroup:members"], "dst": ["autogroup:members:*"]}]}`,
	} {
		if _, err := Parse("acl.hujson", []byte(src), Options{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What Hedge adds to the language is refused when a file is read as Tailscale's.
func TestCompatRefusesExtras(t *testing.T) {
	for name, src := range map[string]string{
		"deny":           `{"acls": [{"action": "deny", "src": ["*"], "dst": ["*:*"]}]}`,
		"not":            `{"groups": {"group:a": []}, "acls": [{"action": "accept", "src": ["!group:a"], "dst": ["*:*"]}]}`,
		"and":            `{"groups": {"group:a": []}, "acls": [{"action": "accept", "src": ["group:a & autogroup:member"], "dst": ["*:*"]}]}`,
		"expires":        `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "expires": "2030-01-02T03:04:05Z"}]}`,
		"window":         `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "window": "x"}]}`,
		"never":          `{"acls": [], "never": []}`,
		"default access": `{"acls": [], "defaultAccess": "deny"}`,
	} {
		if _, err := Parse("acl.hujson", []byte(src), Options{Compat: true}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, src := range []string{"", "{}", `{"groups": {}}`, `{"groups": {"group:a": [,]}}`} {
		if _, err := Parse("acl.hujson", []byte(src), Options{Compat: true}); err != nil {
			t.Errorf("%q: %v", src, err)
		}
		if _, err := Parse("acl.hujson", []byte(src), Options{}); err == nil {
			t.Errorf("%q: accepted without compat", src)
		}
	}
}

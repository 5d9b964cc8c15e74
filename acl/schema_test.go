package acl

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/tailscale/hujson"
	"pgregory.net/rapid"
)

// conforms is the part of JSON Schema that Schema uses.
func conforms(s map[string]any, v any, path string) error {
	switch s["type"] {
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf("%s is no object", path)
		}
		props, _ := s["properties"].(map[string]any)
		for k, x := range m {
			if x == nil {
				continue
			}
			sub, known := props[k].(map[string]any)
			if !known {
				if sub, known = s["additionalProperties"].(map[string]any); !known {
					return fmt.Errorf("%s has no %s", path, k)
				}
			}
			if err := conforms(sub, x, path+"."+k); err != nil {
				return err
			}
		}
	case "array":
		l, ok := v.([]any)
		if !ok {
			return fmt.Errorf("%s is no array", path)
		}
		for _, x := range l {
			if err := conforms(s["items"].(map[string]any), x, path+"[]"); err != nil {
				return err
			}
		}
	case "string":
		if _, ok := v.(string); !ok {
			return fmt.Errorf("%s is no string", path)
		}
	}
	if e, ok := s["enum"].([]any); ok && !slices.Contains(e, v) {
		return fmt.Errorf("%s is %v, and not one of %v", path, v, e)
	}
	if of, ok := s["anyOf"].([]any); ok && !slices.ContainsFunc(of, func(x any) bool { return conforms(x.(map[string]any), v, path) == nil }) {
		return fmt.Errorf("%s is %v, which is nothing", path, v)
	}
	return nil
}

func schema(t testing.TB) map[string]any {
	var s map[string]any
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func conformsText(t interface{ Fatal(...any) }, s map[string]any, text string) error {
	std, err := hujson.Standardize([]byte(text))
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal(std, &v); err != nil {
		t.Fatal(err)
	}
	return conforms(s, v, "policy")
}

// What the parser takes, the schema takes.
func TestSchemaTakesValidFiles(t *testing.T) {
	s := schema(t)
	rapid.Check(t, func(t *rapid.T) {
		text := drafts.Draw(t, "policy").text(t)
		if err := conformsText(t, s, text); err != nil {
			t.Fatal(err)
		}
	})
	for _, text := range []string{
		`{"defaultAccess": "allow"}`,
		"{" + head + `"ipsets": {"ipset:a": ["add 10.0.0.0/8", "remove 10.1.0.0/16"]}, "postures": {"posture:p": ["node:os == 'linux'"]}, "defaultSrcPosture": ["posture:p"],
			"attrConfig": {"custom:x": {"type": "string", "allowSetByNode": true}},
			"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router"]}, "exitNode": ["tag:exit"]},
			"grants": [{"src": ["*"], "dst": ["10.0.0.0/8"], "ip": ["tcp:80"], "via": ["tag:router"], "app": {"example.com/cap/x": [{"a": 1}]}, "expires": "2030-01-01T00:00:00Z"}],
			"acls": [{"action": "accept", "users": ["group:eng & tag:web"], "ports": ["*:*"], "proto": "tcp", "srcPosture": []}, null][0:1]}`,
		"{" + head + `"acls": [{"action": "accept", "users": ["group:eng & tag:web"], "ports": ["dbhost:*"], "proto": "47"}],
			"ssh": [{"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"], "checkPeriod": "12h", "acceptEnv": ["A*"]}],
			"nodeAttrs": [{"target": ["*"], "attr": ["a"], "ipPool": ["100.64.9.0/24"], "app": {"x/y": []}}],
			"tests": [{"src": "alice@example.com", "deny": ["tag:db:22"], "srcPostureAttrs": {"node:os": "linux", "custom:n": 3}}],
			"never": [{"src": ["alice@example.com"], "dst": ["tag:exit:*"], "proto": "tcp"}], "randomizeClientPort": false}`,
	} {
		text = strings.Replace(text, ", null][0:1]", "]", 1)
		if _, err := Parse("acl.hujson", []byte(text), Options{}); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if err := conformsText(t, s, text); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	}
}

// Of the files that the parser refuses for their form, the schema refuses those with unknown fields and bad actions.
func TestSchemaRefusesBadFiles(t *testing.T) {
	s := schema(t)
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, name := range files {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(a.Files); i += 2 {
			_, err := Parse("acl.hujson", a.Files[i].Data, Options{})
			cs := Of(err).Classes()
			if !slices.Contains(cs, ClassUnknownField) {
				continue
			}
			seen++
			if conformsText(t, s, string(a.Files[i].Data)) == nil {
				t.Errorf("%s: the schema takes %s", name, a.Files[i].Name)
			}
		}
	}
	if seen < 2 {
		t.Errorf("only %d files tried", seen)
	}
	for path := range about {
		if !strings.Contains(path, "[") && !strings.Contains(path, ".") && path != "" && s["properties"].(map[string]any)[path] == nil {
			t.Errorf("the schema says something about %q, which is no field", path)
		}
	}
}

package acl

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Every example of the manual is a policy, or part of one.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("../docs/acl.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```hujson\n(.*?)```").FindAllStringSubmatch(string(b), -1)
	if len(blocks) < 10 {
		t.Fatalf("%d examples found", len(blocks))
	}
	names := blocks[0][1]
	for _, m := range blocks[1:] {
		src := "{" + names + strings.TrimRight(strings.TrimSpace(m[1]), ",")
		if !strings.Contains(m[1], `"acls"`) && !strings.Contains(m[1], `"grants"`) && !strings.Contains(m[1], `"defaultAccess"`) {
			src += `, "acls": []`
		}
		p, err := Parse("acl.md", []byte(src+"}"), Options{})
		if err != nil {
			t.Errorf("%s\n%s", Of(err).Render(), m[1])
			continue
		}
		if es := p.Test(Sample(p)); len(es) > 0 {
			t.Errorf("%s\n%s", es.Render(), m[1])
		}
		if err := conformsText(t, schema(t), src+"}"); err != nil {
			t.Errorf("schema: %v\n%s", err, m[1])
		}
	}
}

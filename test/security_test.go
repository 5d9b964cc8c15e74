package test

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every test that SECURITY.md names is there, and every row has one.
//
//	| attack | what holds it off | `package: Test`, `package: Test/subtest` |
func TestSecurityTable(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	funcs := map[string]map[string]string{} // by package and name, their source
	sources(t, func(path string, src []byte, fset *token.FileSet, file *ast.File) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		if funcs[dir] == nil {
			funcs[dir] = map[string]string{}
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				funcs[dir][f.Name.Name] = string(src[fset.Position(f.Pos()).Offset:fset.Position(f.End()).Offset])
			}
		}
	})
	named := regexp.MustCompile("`([a-z0-9/]+): ((?:Test|Fuzz|Benchmark)\\w+)(?:/([^`]+))?`")
	rows := 0
	for i, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|-") || strings.HasPrefix(line, "| attack") || strings.HasPrefix(line, "| not here") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		switch rows++; len(cells) {
		case 2: // what cannot happen here, and why
			if strings.TrimSpace(cells[1]) == "" {
				t.Errorf("SECURITY.md:%d: %s has no reason", i+1, strings.TrimSpace(cells[0]))
			}
			continue
		case 3:
		default:
			t.Errorf("SECURITY.md:%d: %d cells", i+1, len(cells))
			continue
		}
		tests := named.FindAllStringSubmatch(cells[2], -1)
		if len(tests) == 0 || len(tests) != strings.Count(cells[2], "`")/2 {
			t.Errorf("SECURITY.md:%d: no test, or one that is not of the form `package: Test`: %s", i+1, cells[2])
		}
		for _, m := range tests {
			body, ok := funcs[m[1]][m[2]]
			if !ok || m[3] != "" && !strings.Contains(body, `"`+m[3]+`"`) {
				t.Errorf("SECURITY.md:%d: there is no %s", i+1, m[0])
			}
		}
	}
	if rows < 60 {
		t.Errorf("%d rows were read", rows)
	}
}

// R-const-time: nothing whose name says that it is secret is compared in a time that tells how much of it was right.
// Private keys do not compare at all: that does not compile (node/key).
func TestRConstTime(t *testing.T) {
	secret := regexp.MustCompile(`(?i)(secret|token|password|passwd|private|hmac|mac1|psk|enrol)`)
	// What these compare is not the secret: whether there is one, or what kind of thing it is.
	compares := []string{"bytes.Equal", "bytes.Compare", "bytes.HasPrefix", "strings.EqualFold", "strings.Compare", "strings.HasPrefix", "slices.Equal", "reflect.DeepEqual", "maps.Equal"}
	empty := func(e ast.Expr) bool {
		switch e := e.(type) {
		case *ast.BasicLit:
			return true
		case *ast.Ident:
			return e.Name == "nil" || e.Name == "true" || e.Name == "false"
		case *ast.CompositeLit:
			return len(e.Elts) == 0
		case *ast.ParenExpr:
			c, ok := e.X.(*ast.CompositeLit)
			return ok && len(c.Elts) == 0
		}
		return false
	}
	name := func(e ast.Expr) string {
		for {
			switch x := e.(type) {
			case *ast.SelectorExpr:
				return x.Sel.Name
			case *ast.Ident:
				return x.Name
			case *ast.IndexExpr:
				e = x.X
			case *ast.SliceExpr:
				e = x.X
			case *ast.UnaryExpr:
				e = x.X
			case *ast.StarExpr:
				e = x.X
			case *ast.ParenExpr:
				e = x.X
			case *ast.CallExpr:
				if len(x.Args) != 1 {
					return name1(x.Fun)
				}
				if f := name1(x.Fun); f == "len" || f == "cap" {
					return f
				}
				e = x.Args[0] // a conversion
			default:
				return ""
			}
		}
	}
	found := 0
	check := func(fset *token.FileSet, pos token.Pos, es ...ast.Expr) {
		if slices.ContainsFunc(es, empty) {
			return
		}
		for _, e := range es {
			if n := name(e); secret.MatchString(n) && !public.MatchString(n) {
				t.Errorf("%v: %s is compared, and its name says that it is secret: use crypto/subtle", fset.Position(pos), n)
			}
		}
	}
	sources(t, func(path string, _ []byte, fset *token.FileSet, file *ast.File) {
		if strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "test/") {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BinaryExpr:
				if n.Op == token.EQL || n.Op == token.NEQ {
					found++
					check(fset, n.Pos(), n.X, n.Y)
				}
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok {
					if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(compares, x.Name+"."+sel.Sel.Name) {
						found++
						check(fset, n.Pos(), n.Args...)
					}
				}
			case *ast.SwitchStmt:
				if n.Tag != nil {
					check(fset, n.Pos(), n.Tag)
				}
			}
			return true
		})
	})
	if found < 1000 {
		t.Errorf("%d comparisons were looked at", found)
	}
}

// public is what is not secret whatever else its name says: a kind, a number of something, when it ends.
var public = regexp.MustCompile(`(?i)(kind|len|size|max|type|expires|public|uses|id)$`)

func name1(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.Ident:
		return e.Name
	}
	return fmt.Sprintf("%T", e)
}

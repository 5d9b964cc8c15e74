// Package test holds what only whole programs can show: the rules of the house, and meshes from end to end.
package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	root   = ".."
	module = "github.com/hedge-mesh/hedge"
)

// pkg is what the rules ask of `go list`.
type pkg struct {
	ImportPath string
	Dir        string
	Doc        string
	Imports    []string
	Deps       []string
}

func packages(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports,Deps", "./...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string]pkg{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")] = p
	}
}

// What each package may import of ours. A package that is not here may not exist: adding a room means saying what it
// may know.
var mayImport = map[string][]string{
	"acl":                {},
	"acl/filter":         {"acl"},
	"node/key":           {},
	"node/device":        {},
	"node/arena":         {},
	"node/hatch":         {},
	"node/udp":           {},
	"derp":               {"node/key", "node/udp"},
	"netstack":           {"node/arena", "node/fair"},
	"node/fair":          {},
	"node/path":          {"node/key"},
	"node/portmap":       {},
	"node/proxy":         {},
	"node/sentry":        {},
	"node/ostun":         {"node/arena", "node/fair", "node/sentry"},
	"node/bind":          {"node/path", "derp", "node/device", "node/key", "node/sentry", "node/udp"},
	"coordinator/store":  {},
	"coordinator/wire":   {"acl", "node/key"},
	"coordinator":        {"acl", "coordinator/wire", "coordinator/store", "derp", "node/hatch", "node/key"},
	"node":               {"acl", "acl/filter", "coordinator/wire", "derp", "netstack", "node/bind", "node/device", "node/hatch", "node/fair", "node/ostun", "node/path", "node/key", "node/portmap", "node/proxy"},
	"cmd/hedge":          {"acl", "acl/filter", "coordinator", "coordinator/store", "coordinator/wire", "derp", "netstack", "node", "node/bind", "node/hatch", "node/key", "node/ostun", "node/path"},
	"test":               {},
	"test/bench":         {"test/bench/crowd", "test/bench/hosts", "test/bench/kid", "test/bench/process", "test/bench/relays", "test/bench/report"},
	"test/bench/crowd":   {"coordinator/wire", "node/key", "test/bench/kid"},
	"test/bench/hosts":   {"node/key", "test/bench/crowd", "test/bench/kid", "test/bench/meter", "test/bench/report"},
	"test/bench/kid":     {},
	"test/bench/meter":   {},
	"test/bench/process": {"coordinator", "coordinator/store", "netstack", "node", "node/key", "test/bench/crowd", "test/bench/kid", "test/bench/meter", "test/bench/report"},
	"test/bench/relays":  {"derp", "node/key", "test/bench/kid", "test/bench/meter", "test/bench/report"},
	"test/bench/report":  {},
	"test/lab":           {},
	"test/paths":         {"node", "test/lab"},
}

func TestImports(t *testing.T) {
	for path, p := range packages(t) {
		allowed, known := mayImport[path]
		if !known {
			t.Errorf("%s is a new package: draw it in docs/architecture.md and say in mayImport what it may know", path)
		}
		for _, imp := range p.Imports {
			if ours, ok := strings.CutPrefix(imp, module+"/"); ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s: the arrows of docs/architecture.md point the other way", path, ours)
			}
		}
	}
}

// A relay or a coordinator is a small program with a small attack surface: no network stack of its own.
func TestNoStackInServers(t *testing.T) {
	all := packages(t)
	for _, path := range []string{"derp", "coordinator", "coordinator/wire", "coordinator/store", "acl", "acl/filter"} {
		for _, dep := range all[path].Deps {
			if strings.HasPrefix(dep, "gvisor.dev/") {
				t.Errorf("%s links %s: a relay or coordinator must not carry gVisor, it is megabytes of code that untrusted bytes could reach", path, dep)
			}
		}
	}
}

func TestPackageDoc(t *testing.T) {
	for path, p := range packages(t) {
		if p.Doc == "" && !strings.HasPrefix(path, "test") {
			t.Errorf("%s has no package comment: say in one screen what its noun is", path)
		}
	}
}

// sources calls f with every Go file of the tree, parsed.
func sources(t *testing.T, f func(path string, src []byte, fset *token.FileSet, file *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, src, parser.ParseComments)
		if err != nil {
			return err
		}
		f(filepath.ToSlash(strings.TrimPrefix(path, root+string(filepath.Separator))), src, fset, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Formatting, sizes, and no test that waits by sleeping.
func TestSources(t *testing.T) {
	const maxFile, maxFunc = 600, 80
	sources(t, func(path string, src []byte, fset *token.FileSet, file *ast.File) {
		if want, err := format.Source(src); err != nil || !bytes.Equal(want, src) {
			t.Errorf("%s is not gofmt'd", path)
		}
		if strings.HasPrefix(path, "node/device/") && bytes.Contains(src, []byte("WireGuard LLC")) {
			return // not written here; hedge.patch is what was, and is compared
		}
		if n := bytes.Count(src, []byte("\n")); n > maxFile {
			t.Errorf("%s has %d lines, over %d: does it hold two ideas?", path, n, maxFile)
		}
		test := strings.HasSuffix(path, "_test.go")
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if lines := fset.Position(n.End()).Line - fset.Position(n.Pos()).Line; lines > maxFunc && !test {
					t.Errorf("%s: %s has %d lines, over %d", path, n.Name.Name, lines, maxFunc)
				}
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || !test {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && sel.Sel.Name == "Sleep" && !usesSynctest(file) {
					t.Errorf("%v: a test sleeps; wait for the condition, or use testing/synctest", fset.Position(n.Pos()))
				}
			}
			return true
		})
	})
}

// In a synctest bubble, Sleep only moves the fake clock.
func usesSynctest(file *ast.File) bool {
	return slices.ContainsFunc(file.Imports, func(s *ast.ImportSpec) bool { return s.Path.Value == `"testing/synctest"` })
}

// The project speaks only of itself.
func TestTopLevel(t *testing.T) {
	want := []string{".ci", ".git", ".gitignore", "bench.json", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "acl", "bin", "cmd",
		"coordinator", "derp", "docs", "go.mod", "go.sum", "netstack", "node", "test"}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(want, e.Name()) {
			t.Errorf("%s does not belong at the top level", e.Name())
		}
	}
}

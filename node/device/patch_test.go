package device

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write hedge.patch anew")

// ours are the files that are not WireGuard's.
var ours = map[string]bool{"doc.go": true}

// theirs are the tests that are WireGuard's.
var theirs = map[string]bool{
	"allowedips_rand_test.go": true, "allowedips_test.go": true, "cookie_test.go": true, "kdf_test.go": true, "noise_test.go": true,
	"race_disabled_test.go": true, "race_enabled_test.go": true,
}

// hedge.patch is what differs from WireGuard's own package, to the last byte: there is little to review, and nothing else.
func TestPatch(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is needed to compare")
	}
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.zx2c4.com/wireguard").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	tmp := t.TempDir()
	gather(t, filepath.Join(strings.TrimSpace(string(dir)), "device"), filepath.Join(tmp, "a"))
	gather(t, ".", filepath.Join(tmp, "b"))
	cmd := exec.Command("git", "-c", "core.abbrev=12", "diff", "--no-index", "--no-color", "--no-ext-diff", "--no-renames", "--diff-algorithm=myers", "--no-prefix", "a", "b")
	cmd.Dir = tmp
	got, err := cmd.Output()
	if e, ok := err.(*exec.ExitError); err != nil && (!ok || e.ExitCode() != 1) {
		t.Fatalf("git diff: %v", err)
	}
	if *update {
		if err := os.WriteFile("hedge.patch", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("hedge.patch")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("hedge.patch is not what differs from WireGuard's package; if that is meant: go test ./node/device -run TestPatch -update")
	}
}

// gather copies the Go files of WireGuard's package, of its tests those that are here too.
func gather(t *testing.T, from, to string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(from, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := filepath.Base(f)
		if strings.HasSuffix(name, "_test.go") && !theirs[name] || ours[name] {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

package kid

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestMain makes this test's own binary the program that has kids.
func TestMain(m *testing.M) {
	Main(map[string]func([]string) error{
		"broom": sweep,
		// litter leaves something in a folder that is to be removed, and says where.
		"litter": func([]string) error {
			dir, _, err := Broom(context.Background())
			if err != nil {
				return err
			}
			return Serve(dir, func(string) (string, error) { return dir, os.WriteFile(dir+"/litter", nil, 0o600) })
		},
		"double": func(args []string) error {
			return Serve(len(args), func(n int) (int, error) {
				if n < 0 {
					return 0, errors.New("too small")
				}
				return 2 * n, nil
			})
		},
		"dies": func([]string) error { return errors.New("as it should") },
		// hold stands for a long request: it is not done before its parent has ended.
		"hold": func([]string) error {
			grace = 10 * time.Millisecond
			return Serve(0, func(int) (int, error) { select {} })
		},
		// parent has a kid that is busy, and says its process ID.
		"parent": func([]string) error {
			k, err := Start[int, int](context.Background(), "hold", nil)
			if err != nil {
				return err
			}
			if err := json.NewEncoder(k.in).Encode(1); err != nil {
				return err
			}
			return Serve(k.PID(), k.Ask)
		},
	})
	os.Exit(m.Run())
}

func TestAsk(t *testing.T) {
	k, err := Start[int, int](t.Context(), "double", nil, "one", "two")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Stop()
	if k.Ready != 2 {
		t.Errorf("it got %d arguments, want 2", k.Ready)
	}
	if n, err := k.Ask(21); n != 42 || err != nil {
		t.Errorf("twice 21 is %d, %v", n, err)
	}
	if _, err := k.Ask(-1); err == nil || err.Error() != "too small" {
		t.Errorf("a refusal came as %v", err)
	}
	if n, err := k.Ask(4); n != 8 || err != nil {
		t.Errorf("after a refusal: %d, %v", n, err)
	}
}

func TestDoesNotComeUp(t *testing.T) {
	for _, job := range []string{"dies", "nobody"} {
		if k, err := Start[int, int](t.Context(), job, nil); err == nil {
			k.Stop()
			t.Errorf("%s came up", job)
		}
	}
	if _, err := Run[int, int](t.Context(), "/nowhere", "double", nil); err == nil {
		t.Error("a program that is not there came up")
	}
}

func TestWrap(t *testing.T) {
	if _, err := exec.LookPath("env"); err != nil {
		t.Skip(err)
	}
	k, err := Start[int, int](t.Context(), "double", []string{"env", "A=1"})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Stop()
	if n, err := k.Ask(1); n != 2 || err != nil {
		t.Errorf("behind other words: %d, %v", n, err)
	}
}

// A folder goes with the process that had it made, at its order or when it is killed.
func TestBroom(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dir, stop, err := Broom(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after stop: %v", err)
	}
	k, err := Start[string, string](t.Context(), "litter", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Ask(""); err != nil {
		t.Fatal(err)
	}
	if err := k.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	k.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(20 * time.Second); ; {
		if _, err := os.Stat(k.Ready); errors.Is(err, os.ErrNotExist) {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("the folder of a killed process is left")
		}
	}
}

// The end of the context ends a kid.
func TestContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	k, err := Start[int, int](ctx, "double", nil)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := k.next(); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("it lives on: %v", err)
	}
	k.Stop()
}

// What is busy when its parent has gone ends all the same.
func TestOrphan(t *testing.T) {
	in, out := strings.NewReader("1\n"), new(strings.Builder)
	gone, busy := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		done <- serve(in, out, 0, func(int) (int, error) {
			close(busy)
			<-gone // that of the parent was noticed while a request is under way
			return 0, nil
		}, func() { close(gone) })
	}()
	for _, c := range []chan struct{}{busy, gone} {
		select {
		case <-c:
		case <-time.After(10 * time.Second):
			t.Fatal("the end of the parent is not noticed")
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

//go:build unix

package kid

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A parent that is killed takes its kids with it, busy as they are.
func TestKilledParent(t *testing.T) {
	p, err := Start[int, int](t.Context(), "parent", nil)
	if err != nil {
		t.Fatal(err)
	}
	grandkid := p.Ready
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(20 * time.Second); lives(grandkid); {
		select {
		case <-tick.C:
		case <-end:
			_ = syscall.Kill(grandkid, syscall.SIGKILL)
			t.Fatal("it lives on without its parent")
		}
	}
}

// lives tells a process from one that has ended and that nobody has asked about.
func lives(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return syscall.Kill(pid, 0) == nil && !strings.HasPrefix(state, "Z")
}

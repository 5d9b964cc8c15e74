package meter

import (
	"os"
	"runtime"
	"testing"
)

func TestParse(t *testing.T) {
	status := "Name:\thedge\nVmPeak:\t 1 kB\nVmRSS:\t   20000 kB\nThreads:\t9\n"
	if got := parseMB(status, "VmRSS:"); got != 20.48 {
		t.Errorf("%v MB, want 20.48", got)
	}
	// proc(5): 14 is utime, 15 is stime, and the name may hold anything
	stat := "42 (a) b) c) S 1 42 42 0 -1 4194304 500 0 0 0 1234 66 7 8 20 0 5 0 100 0 0"
	if got := parseCPU(stat); got != 13 {
		t.Errorf("%v s, want 13", got)
	}
	for _, s := range []string{"", "42 (a) S 1", "nonsense"} {
		if parseCPU(s) != 0 || parseMB(s, "VmRSS:") != 0 {
			t.Errorf("%q was read as something", s)
		}
	}
}

// This process has used some time and takes some memory, whichever way it is asked.
func TestSelf(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc")
	}
	n := 0
	for before := Self().CPU; Self().CPU < before+0.03; { // so much that hundredths show it
		n++
	}
	if u := Self(); u.CPU <= 0 || u.RSS <= 1 {
		t.Errorf("of itself: %+v", u)
	}
	one, two := Of(os.Getpid()), Of(os.Getpid(), os.Getpid(), -1)
	if one.CPU <= 0 || one.RSS <= 1 || two.RSS < 1.9*one.RSS {
		t.Errorf("of one: %+v, of two: %+v", one, two)
	}
}

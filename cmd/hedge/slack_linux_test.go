package main

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A thread that may have a core for long gets the shorter slice, and one that may not keeps its own.
func TestSetSlice(t *testing.T) {
	type was struct {
		policy uint32
		nice   int32
		slice  uint64
	}
	for _, c := range []struct {
		name string
		was  was
		set  bool
	}{
		{"long", was{unix.SCHED_NORMAL, 0, 4 * uint64(slice)}, true},
		{"long and nice", was{unix.SCHED_NORMAL, 5, 4 * uint64(slice)}, true},
		{"shorter already", was{unix.SCHED_NORMAL, 0, uint64(slice) / 2}, false},
		{"of another kind", was{unix.SCHED_BATCH, 0, 4 * uint64(slice)}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			runtime.LockOSThread() // for good: the thread ends with us
			a := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: c.was.policy, Nice: c.was.nice, Runtime: c.was.slice}
			if err := unix.SchedSetAttr(0, a, 0); err != nil {
				t.Skipf("sched_setattr is not permitted: %v", err)
			}
			if got, err := unix.SchedGetAttr(0, 0); err != nil || got.Runtime != c.was.slice {
				t.Skipf("this kernel knows of no slices: %+v, %v", got, err)
			}
			if set := setSlice(); set != c.set {
				t.Errorf("set %v, want %v", set, c.set)
			}
			want := c.was
			if c.set {
				want.slice = uint64(slice)
			}
			got, err := unix.SchedGetAttr(0, 0)
			if err != nil || (was{got.Policy, got.Nice, got.Runtime}) != want {
				t.Errorf("it is %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

// All threads but those that never run a goroutine, or wait for the kernel, have the slack that they are given. Where
// somebody else has set one, it stays.
func TestHasten(t *testing.T) {
	set := func(task string, to time.Duration) error {
		return os.WriteFile(filepath.Join("/proc", filepath.Base(task), "timerslack_ns"), []byte(strconv.Itoa(int(to))), 0)
	}
	if err := set(strconv.Itoa(unix.Gettid()), usualSlack); err != nil {
		t.Skipf("to look at other threads needs CAP_SYS_NICE: %v", err)
	}
	tasks := func() []string {
		all, err := filepath.Glob("/proc/self/task/*")
		if err != nil || len(all) == 0 {
			t.Fatal(all, err)
		}
		return all
	}
	const others = 123 * time.Microsecond
	for _, c := range []struct{ was, to, want time.Duration }{
		{sysmonSlack, slack, slack},
		{slack, keenSlack, keenSlack},
		{others, slack, others},
	} {
		hasten(c.was) // so that there are some
		for _, task := range tasks() {
			_ = set(task, c.was) // it may have ended
		}
		hasten(c.to)
		n, late := 0, 0
		for _, task := range tasks() {
			ns, err := os.ReadFile(filepath.Join("/proc", filepath.Base(task), "timerslack_ns"))
			if err != nil {
				continue
			}
			if n++; string(bytes.TrimSpace(ns)) != strconv.Itoa(int(c.want)) {
				late++
			}
		}
		if n < threads || late > 6 { // sysmon, who makes threads for threads that are taken, who waits in epoll, and the like
			t.Errorf("%v for %v: %d of %d threads do not have %v", c.to, c.was, late, n, c.want)
		}
		for _, task := range tasks() {
			_ = set(task, usualSlack)
		}
	}
}

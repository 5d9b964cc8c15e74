package main

import (
	"runtime"
	"testing"

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

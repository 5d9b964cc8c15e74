// Package meter reads what processes use: processor time and memory. Where there is no /proc it knows less.
package meter

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Use is what some processes have used, and take, together.
type Use struct {
	CPU float64 // seconds so far, in user and in kernel mode
	RSS float64 // megabytes now, resident
	// Peak is the most that RSS ever was, of Self only.
	Peak float64
}

// Of reads it of processes by their IDs; those that are gone count nothing.
func Of(pids ...int) (u Use) {
	for _, pid := range pids {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		u.CPU += parseCPU(string(stat))
		u.RSS += parseMB(string(status), "VmRSS:")
	}
	return u
}

// Self reads it of this process, the time to the microsecond.
func Self() Use {
	status, _ := os.ReadFile("/proc/self/status")
	return Use{CPU: self(), RSS: parseMB(string(status), "VmRSS:"), Peak: parseMB(string(status), "VmHWM:")}
}

// parseMB reads megabytes from a line of a process's status; 0 if it says none.
func parseMB(status, name string) float64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kib, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return kib * 1024 / 1e6
		}
	}
	return 0
}

// parseCPU reads user and system time from a process's stat, in seconds (proc(5): fields 14 and 15, in hundredths).
func parseCPU(stat string) float64 {
	i := strings.LastIndex(stat, ") ") // the name before may hold anything
	f := strings.Fields(stat[i+1:])    // from field 3 on
	if i < 0 || len(f) < 13 {
		return 0
	}
	u, _ := strconv.ParseFloat(f[11], 64)
	k, _ := strconv.ParseFloat(f[12], 64)
	return (u + k) / 100
}

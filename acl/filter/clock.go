package filter

import (
	"fmt"
	"math"
	"time"
)

// The ends and windows of rules are times of day. A node reads those from a clock that somebody may set, forward to open
// a window or back to undo an end. So its readings are held against what the time must be: what it was when the clock
// was last believed, and how much has passed since by the monotonic clock, which nobody can set.
//
//	first Set, Confirm ── believed ─ + monotonic ─┬─ within a minute of the clock, and that is past NotBefore: all well
//	                                              └─ else in doubt: accepts with a window are shut, denies with one are
//	                                                 in force; accepts end by the latest time it may be, denies by the
//	                                                 earliest
//
// A monotonic clock that stands still while the machine sleeps makes the other look as if it had jumped. That is for
// the next Confirm to put right.

// maxApart is how far a clock may be from what it should say: windows count in minutes.
const maxApart = time.Minute

// Doubt is why a clock is in doubt. The zero Doubt is none.
type Doubt uint8

// The doubts, of which the first that applies is named.
const (
	Believed    Doubt = iota
	ClockEarly        // before Config.NotBefore
	ClockApart        // not what Confirm was told
	ClockJumped       // forward or back, since it was last believed
)

// String completes "the clock of this node ...".
func (d Doubt) String() string {
	return [...]string{"is right", "is behind the time at which its policy was made", "differs from the coordinator's by more than a minute",
		"has jumped by more than a minute"}[d]
}

// belief is when the clock was last believed.
type belief struct {
	at   time.Time // a reading of both clocks
	wall int64     // what time it was, Unix ns
	told Doubt     // what a difference means
}

// moment is the span in which the time of day must lie, Unix ns: of no length while the clock is believed.
type moment struct{ early, late int64 }

func (s *snapshot) moment(now time.Time) moment {
	wall := now.UnixNano()
	if s.doubt == Believed {
		return moment{wall, wall}
	}
	must := s.believed.wall + int64(now.Sub(s.believed.at))
	return moment{max(min(wall, must), s.floor), max(wall, must, s.floor)}
}

// doubts says whether the clock is in doubt by a reading of it.
func (s *snapshot) doubts(now time.Time) Doubt {
	wall := now.UnixNano()
	apart := wall - s.believed.wall - int64(now.Sub(s.believed.at))
	switch {
	case wall < s.floor-int64(maxApart):
		return ClockEarly
	case apart > int64(maxApart), apart < -int64(maxApart):
		return s.believed.told
	}
	return Believed
}

// Confirm tells the filter what time it is by somebody whom this node believes. From then on this is what its clock is
// held against. It returns the flows that it ended.
func (f *Filter) Confirm(theirs, now time.Time) []Cut {
	f.setting.Lock()
	defer f.setting.Unlock()
	f.believed = belief{now, theirs.UnixNano(), ClockJumped}
	if apart := now.Sub(theirs); apart > maxApart || apart < -maxApart {
		f.believed.told = ClockApart
	}
	return f.look(now, true)
}

// Doubt says whether the clock is in doubt.
func (f *Filter) Doubt() Doubt { return f.snap.Load().doubt }

// Tick forgets idle flows and returns those cut because their rule is no longer in force. Call it every few seconds, and at
// Deadline.
func (f *Filter) Tick(now time.Time) []Cut {
	f.setting.Lock()
	defer f.setting.Unlock()
	s := f.snap.Load()
	f.frags.mu.Lock()
	f.frags.expire(s.since(now))
	f.frags.mu.Unlock()
	return f.look(now, true)
}

// look holds the clock against what it should say, and reviews all flows. It is called under setting.
func (f *Filter) look(now time.Time, whole bool) []Cut {
	old := f.snap.Load()
	s := old
	if s.conf != nil {
		held := *old
		held.believed = f.believed
		if held.doubt = held.doubts(now); held.doubt != old.doubt {
			held.epoch++
			held.programs.init(len(held.classes))
		}
		if held.epoch != old.epoch || held.believed != old.believed {
			s = &held
		}
	}
	if s == old && !whole {
		return nil
	}
	f.warm(old, s, s.moment(now).late)
	f.snap.Store(s)
	cuts := append(f.pending, f.review(s, now)...)
	f.pending = nil
	return cuts
}

// stepped acts on a clock that a packet has found to be wrong, between two calls of Tick. What that cuts waits for the
// next of those.
func (f *Filter) stepped(now time.Time) {
	f.setting.Lock()
	defer f.setting.Unlock()
	if s := f.snap.Load(); s.doubt == Believed && s.doubts(now) != Believed {
		f.pending = f.look(now, false)
	}
}

// Deadline is when the next rule expires, or enters or leaves its window; zero means never.
func (f *Filter) Deadline(now time.Time) time.Time {
	s, next := f.snap.Load(), int64(math.MaxInt64)
	at := s.moment(now)
	if s.doubt == Believed {
		for _, rule := range s.windowed {
			if t := s.rules[rule].Next(now); !t.IsZero() {
				next = min(next, unixNano(t))
			}
		}
	}
	for _, end := range s.expires {
		if at.late < end && end != math.MaxInt64 {
			next = min(next, end-(at.late-now.UnixNano()))
		}
	}
	if next == math.MaxInt64 {
		return time.Time{}
	}
	return time.Unix(0, next)
}

// shutText says why a rule with a window admits nothing.
func (s *snapshot) shutText(v Verdict) string {
	if v.Reason == ClockDoubt {
		return fmt.Sprintf("%s, and the clock of this node %v", v.Rule.Window, s.doubt)
	}
	return string(v.Rule.Window)
}

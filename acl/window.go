package acl

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // a zone means the same on every node, whatever its system knows
)

// Window is when in the week a rule is in force, by the clocks on the walls of a place; empty is always.
//
//	window = days { "," days } " " span { "," span } " " zone
//	days   = Mon | Tue | Wed | Thu | Fri | Sat | Sun, or two of them with "-" between; or "daily"
//	span   = HH:MM "-" HH:MM      up to 24:00; one that ends before it begins ends on the next day
//	zone   = a name of the IANA time zone database: Europe/Zurich, UTC
//
// A rule whose window cannot be read admits nothing if it accepts, and counts at all times if it denies.
type Window string

const (
	day  = 24 * 60
	week = 7 * day // in minutes
)

// schedule is a Window read: minutes of the week from Monday 00:00, each span from and up to, sorted.
type schedule struct {
	spans [][2]int
	zone  *time.Location
}

var weekdays = []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}

// schedules remembers the windows read, up to maxSchedules of them.
var schedules struct {
	sync.Mutex
	known map[Window]*schedule
}

const maxSchedules = 1024

// schedule reads the window, once.
func (w Window) schedule() (*schedule, error) {
	schedules.Lock()
	s, ok := schedules.known[w]
	schedules.Unlock()
	if ok {
		return s, nil
	}
	s, err := parseWindow(string(w))
	if err != nil {
		return nil, err
	}
	schedules.Lock()
	defer schedules.Unlock()
	if len(schedules.known) >= maxSchedules || schedules.known == nil {
		schedules.known = map[Window]*schedule{}
	}
	schedules.known[w] = s
	return s, nil
}

func parseWindow(text string) (*schedule, error) {
	if len(text) > 200 {
		return nil, fmt.Errorf("window is longer than 200 bytes")
	}
	f := strings.Fields(text)
	if len(f) != 3 {
		return nil, fmt.Errorf("window %q is not days, times and a time zone", text)
	}
	days, err := parseDays(f[0])
	if err != nil {
		return nil, err
	}
	s := &schedule{}
	for _, e := range strings.Split(f[1], ",") {
		from, to, err := parseSpan(e)
		if err != nil {
			return nil, err
		}
		for _, d := range days {
			s.add(d*day+from, d*day+to)
		}
	}
	slices.SortFunc(s.spans, func(a, b [2]int) int { return a[0] - b[0] })
	joined := s.spans[:1]
	for _, x := range s.spans[1:] {
		if last := &joined[len(joined)-1]; x[0] <= last[1] {
			last[1] = max(last[1], x[1])
		} else {
			joined = append(joined, x)
		}
	}
	s.spans = joined
	if f[2] == "Local" {
		return nil, fmt.Errorf("time zone %q is another one on each node", f[2])
	}
	if s.zone, err = time.LoadLocation(f[2]); err != nil {
		return nil, fmt.Errorf("there is no time zone %q", f[2])
	}
	return s, nil
}

// add enters a span, which may run over the end of the week.
func (s *schedule) add(from, to int) {
	if to > week {
		s.spans = append(s.spans, [2]int{0, to - week})
		to = week
	}
	s.spans = append(s.spans, [2]int{from, to})
}

func parseDays(text string) ([]int, error) {
	if strings.EqualFold(text, "daily") {
		return []int{0, 1, 2, 3, 4, 5, 6}, nil
	}
	var out []int
	for _, e := range strings.Split(text, ",") {
		a, b, isRange := strings.Cut(e, "-")
		if !isRange {
			b = a
		}
		first, last := slices.Index(weekdays, strings.ToLower(a)), slices.Index(weekdays, strings.ToLower(b))
		if first < 0 || last < 0 {
			return nil, fmt.Errorf("%q is not a day such as Mon, nor days such as Mon-Fri", e)
		}
		for d := first; ; d = (d + 1) % 7 {
			if !slices.Contains(out, d) {
				out = append(out, d)
			}
			if d == last {
				break
			}
		}
	}
	return out, nil
}

// parseSpan reads HH:MM-HH:MM into minutes of the day; to may be on the next.
func parseSpan(text string) (from, to int, err error) {
	a, b, _ := strings.Cut(text, "-")
	from, okFrom := parseClock(a)
	to, okTo := parseClock(b)
	switch {
	case !okFrom || !okTo || from == day:
		return 0, 0, fmt.Errorf("%q is not a time of the day such as 08:00-18:00", text)
	case from == to:
		return 0, 0, fmt.Errorf("%q is no time at all; write 00:00-24:00 for the whole day", text)
	case to < from:
		to += day
	}
	return from, to, nil
}

func parseClock(s string) (minute int, ok bool) {
	if len(s) != 5 || s[2] != ':' {
		return 0, false
	}
	h, errH := strconv.ParseUint(s[:2], 10, 8)
	m, errM := strconv.ParseUint(s[3:], 10, 8)
	if errH != nil || errM != nil || m > 59 || h > 24 || h == 24 && m > 0 {
		return 0, false
	}
	return int(h)*60 + int(m), true
}

// open reports whether the window is open at a time.
func (s *schedule) open(now time.Time) bool {
	t := now.In(s.zone)
	m := (int(t.Weekday())+6)%7*day + t.Hour()*60 + t.Minute()
	i, found := slices.BinarySearchFunc(s.spans, m, func(x [2]int, m int) int { return x[0] - m })
	return found || i > 0 && m < s.spans[i-1][1]
}

// next is when the window opens or shuts after now, or zero if it never does. Clock changes are walked through: an
// hour that comes twice counts twice.
func (s *schedule) next(now time.Time) time.Time {
	is := s.open(now)
	_, change := now.In(s.zone).ZoneBounds()
	probes := []time.Time{now}
	if !change.IsZero() && change.Sub(now) < 9*24*time.Hour {
		probes = append(probes, change)
	}
	var best time.Time
	try := func(t time.Time) {
		if t.After(now) && (best.IsZero() || t.Before(best)) && s.open(t) != is {
			best = t
		}
	}
	for _, p := range probes {
		local := p.In(s.zone)
		_, offset := local.Zone()
		// Wall-clock time as if it were UTC; a day that a change cuts short starts as the others do.
		wall := local.Add(time.Duration(offset) * time.Second).UTC()
		monday := time.Date(wall.Year(), wall.Month(), wall.Day()-(int(wall.Weekday())+6)%7, 0, 0, 0, 0, time.UTC)
		for w := range 2 {
			for _, x := range s.spans {
				for _, m := range x {
					try(monday.Add(time.Duration(w*week+m)*time.Minute - time.Duration(offset)*time.Second))
				}
			}
		}
		try(p)
	}
	return best
}

// InForce reports whether the rule counts at a time: before its end, and in its window.
func (r *Rule) InForce(now time.Time) bool {
	if !r.Expires.IsZero() && !now.Before(r.Expires) {
		return false
	}
	if r.Window == "" {
		return true
	}
	s, err := r.Window.schedule()
	if err != nil {
		return r.Action == Deny
	}
	return s.open(now)
}

// Next is the first time after now at which InForce says something else; zero for never.
func (r *Rule) Next(now time.Time) time.Time {
	ended := !r.Expires.IsZero() && !now.Before(r.Expires)
	if ended {
		return time.Time{}
	}
	end := r.Expires
	if r.Window == "" {
		return end
	}
	s, err := r.Window.schedule()
	if err != nil {
		if r.Action == Deny {
			return end
		}
		return time.Time{}
	}
	next := s.next(now)
	switch {
	case s.open(now) && !end.IsZero() && (next.IsZero() || end.Before(next)):
		return end
	case !s.open(now) && !end.IsZero() && !next.IsZero() && !next.Before(end):
		return time.Time{} // it ends before it opens again
	}
	return next
}

// window reads the field of a rule.
func (p *parser) window(v value) Window {
	text, ok := p.text(v, "window")
	if !ok {
		return ""
	}
	w := Window(strings.Join(strings.Fields(text), " "))
	if _, err := w.schedule(); err != nil {
		p.fail(v.off, ClassWindow, "write days, times and a time zone: Mon-Fri 08:00-18:00 Europe/Zurich", "%s", err)
		return ""
	}
	return w
}

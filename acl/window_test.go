package acl

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestWindow(t *testing.T) {
	for _, tt := range []struct {
		window, at string // RFC 3339
		want       bool
	}{
		{"Mon-Fri 08:00-18:00 Europe/Zurich", "2026-07-06T05:59:59Z", false}, // a Monday, in summer
		{"Mon-Fri 08:00-18:00 Europe/Zurich", "2026-07-06T06:00:00Z", true},
		{"Mon-Fri 08:00-18:00 Europe/Zurich", "2026-07-06T15:59:59Z", true},
		{"Mon-Fri 08:00-18:00 Europe/Zurich", "2026-07-06T16:00:00Z", false},
		{"Mon-Fri 08:00-18:00 Europe/Zurich", "2026-01-05T06:30:00Z", false}, // in winter
		{"Mon-Fri 08:00-18:00 Europe/Zurich", "2026-01-05T07:00:00Z", true},
		{"Mon-Fri 08:00-18:00 Europe/Zurich", "2026-07-11T10:00:00Z", false}, // a Saturday
		{"Fri-Mon 00:00-24:00 UTC", "2026-07-05T23:59:00Z", true},
		{"Fri-Mon 00:00-24:00 UTC", "2026-07-07T00:00:00Z", false},
		{"daily 22:00-06:00 UTC", "2026-07-07T05:59:00Z", true},
		{"Sun 22:00-06:00 UTC", "2026-07-06T05:59:00Z", true}, // over the end of the week
		{"Sun 22:00-06:00 UTC", "2026-07-07T05:59:00Z", false},
		{"sat,SUN 10:00-11:00,12:00-13:00 UTC", "2026-07-05T12:30:00Z", true},
		{"sat,SUN 10:00-11:00,12:00-13:00 UTC", "2026-07-05T11:30:00Z", false},
	} {
		now, err := time.Parse(time.RFC3339, tt.at)
		if err != nil {
			t.Fatal(err)
		}
		if got := (&Rule{Action: Accept, Window: Window(tt.window)}).InForce(now); got != tt.want {
			t.Errorf("%s at %s: %v, want %v", tt.window, tt.at, got, tt.want)
		}
	}
}

func TestBadWindows(t *testing.T) {
	for _, s := range []string{"", "Mon-Fri", "Mon-Fri 08:00-18:00", "Mo-Fr 08:00-18:00 UTC", "Mon-Fri 8:00-18:00 UTC", "Mon 08:00-08:00 UTC", "Mon 24:00-25:00 UTC",
		"Mon 08:60-09:00 UTC", "Mon 08:00 UTC", "Mon 08:00-18:00 Europe/Zuerich", "Mon 08:00-18:00 Local", "Mon 08:00-18:00 ../etc/passwd", "Mon 08:00-18:00 UTC UTC", "Mon " + strings.Repeat("08:00-09:00,", 30) + "08:00-09:00 UTC"} {
		if _, err := parseWindow(s); err == nil {
			t.Errorf("%q is read", s)
		}
	}
	now := time.Unix(0, 0)
	if (&Rule{Action: Accept, Window: "nonsense"}).InForce(now) || !(&Rule{Action: Deny, Window: "nonsense"}).InForce(now) {
		t.Error("what cannot be read opens something")
	}
}

// Next is the first minute at which InForce changes, over clock changes too.
func TestWindowNext(t *testing.T) {
	windows := []Window{"Mon-Fri 08:00-18:00 Europe/Zurich", "Sun 01:30-02:30 Europe/Zurich", "Sun 02:30-03:00 America/New_York", "daily 22:00-06:00 UTC",
		"Sat 23:00-03:00 Australia/Lord_Howe", "Sun 02:00-03:00 Europe/Zurich", "daily 00:00-24:00 UTC", ""}
	rapid.Check(t, func(t *rapid.T) {
		start := time.Date(2026, time.Month(rapid.SampledFrom([]int{3, 4, 10, 11}).Draw(t, "month")), 1, 0, 0, 0, 0, time.UTC).
			Add(time.Duration(rapid.IntRange(0, 31*day).Draw(t, "minute")) * time.Minute)
		r := &Rule{Action: Accept, Window: rapid.SampledFrom(windows).Draw(t, "window")}
		if rapid.Bool().Draw(t, "ends") {
			r.Expires = start.Add(time.Duration(rapid.IntRange(-10, 3*day).Draw(t, "end")) * time.Minute)
		}
		var want time.Time
		for m := 1; m <= 15*day; m++ { // where the clock leaps over a weekly window, two weeks pass between two
			if at := start.Add(time.Duration(m) * time.Minute); r.InForce(at) != r.InForce(start) {
				want = at
				break
			}
		}
		if got := r.Next(start); !got.Equal(want) {
			t.Fatalf("%q ending %v: from %v (%v) next %v, want %v", r.Window, r.Expires, start, r.InForce(start), got, want)
		}
	})
}

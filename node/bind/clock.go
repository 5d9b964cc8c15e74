package bind

import "time"

// clock notices that this machine has slept: the monotonic clock, by which timers go, stands still meanwhile and the wall
// clock does not. Where the monotonic clock goes on (a virtual machine that was stopped), timers are late.
//
//	wall       ──┼──────────────────────┼──▶  apart by more than sleepLeast: slept
//	monotonic  ──┼────┤        ├────────┼──▶
type clock struct {
	next    time.Time     // when to look again, if nothing else happens
	apart   time.Duration // wall clock before monotonic clock, when last seen
	wasLate bool
}

const (
	clockEvery = 5 * time.Second
	sleepLeast = 5 * time.Second // shorter ones do no harm, and clocks are set now and then
)

func newClock(b *Bind) clock { return clock{next: beat(time.Now()), apart: b.wallApart()} }

// beat is the next of the times at which all that looks every five seconds does, so that an idle machine wakes once.
func beat(now time.Time) time.Time {
	return now.Add(clockEvery - time.Duration(now.UnixNano())%clockEvery)
}

// wallApart is how far the wall clock is ahead of the monotonic one, but for a constant.
func (b *Bind) wallApart() time.Duration {
	now := time.Now()
	apart := now.Round(0).Sub(b.epoch.Round(0)) - now.Sub(b.epoch)
	if d := b.wall.Load(); d != nil {
		apart += *d
	}
	return apart
}

// late takes by how much a timer was late.
func (c *clock) late(by time.Duration) { c.wasLate = by > sleepLeast }

// slept reports whether the machine has slept since the last time.
func (c *clock) slept(b *Bind) bool {
	apart, late := b.wallApart(), c.wasLate
	jump := apart - c.apart
	c.apart, c.wasLate = apart, false
	if now := time.Now(); !c.next.After(now) {
		c.next = beat(now)
	}
	return late || jump > sleepLeast
}

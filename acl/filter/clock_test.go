package filter

import (
	"net/netip"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// set makes the clock jump by d, as seen from the filter: what it believed was d less.
func jump(f *Filter, d time.Duration) {
	f.believed.wall -= int64(d)
	s := *f.snap.Load()
	s.believed = f.believed
	f.snap.Store(&s)
}

// timed is a mesh at t0, a Sunday at 12:00, with a rule for each case on a port of its own.
func timed(t *testing.T) *Filter {
	open, shut, deny := rule(1, acl.Accept, "a", "v", ports(1)), rule(2, acl.Accept, "a", "v", ports(2)), rule(3, acl.Deny, "a", "v", ports(3))
	always, ends, denyEnds := rule(4, acl.Accept, "a", "v", ports(3, 4, 6)), rule(5, acl.Accept, "a", "v", ports(5)), rule(6, acl.Deny, "a", "v", ports(6))
	open.Window, shut.Window, deny.Window = "Sun 11:00-13:00 UTC", "Sun 14:00-15:00 UTC", "Sun 14:00-15:00 UTC"
	ends.Expires, denyEnds.Expires = after(time.Hour), after(-time.Hour)
	return newMesh(t, open, shut, deny, always, ends, denyEnds)
}

// dials says what becomes of a new flow to each of ports 1 to 6.
func dials(t *testing.T, f *Filter, now time.Time, want ...Reason) {
	t.Helper()
	for i, want := range want {
		if got := f.Check(netip.MustParseAddrPort(a4+":9"), netip.AddrPortFrom(netip.MustParseAddr(v4), uint16(i+1)), protoUDP, now).Reason; got != want {
			t.Errorf("port %d: %v, want %v", i+1, got, want)
		}
	}
}

// While the clock is in doubt accepts with a window are shut and denies with one in force; an accept ends if it may
// have ended, and a deny if it must have.
func TestClockInDoubt(t *testing.T) {
	believed := []Reason{ByRule, RuleShut, ByRule, ByRule, ByRule, ByRule}
	doubted := []Reason{ClockDoubt, ClockDoubt, DenyRule, ByRule, ByRule, ByRule}
	late := []Reason{ClockDoubt, ClockDoubt, DenyRule, ByRule, RuleExpired, ByRule}
	early := []Reason{ClockDoubt, ClockDoubt, DenyRule, ByRule, ByRule, DenyRule}
	for _, tt := range []struct {
		name string
		do   func(f *Filter)
		want []Reason
		why  Doubt
	}{
		{"nothing happens", func(*Filter) {}, believed, Believed},
		{"a second is nothing", func(f *Filter) { jump(f, time.Second) }, believed, Believed},
		{"forward by ten minutes", func(f *Filter) { jump(f, 10*time.Minute) }, doubted, ClockJumped},
		{"back by ten minutes", func(f *Filter) { jump(f, -10*time.Minute) }, doubted, ClockJumped},
		{"forward by two hours: it was 10:00, when the deny had not ended", func(f *Filter) { jump(f, 2*time.Hour) }, early, ClockJumped},
		{"back by two hours: it was 14:00, when the accept had ended", func(f *Filter) { jump(f, -2*time.Hour) }, late, ClockJumped},
		{"and forth again", func(f *Filter) { jump(f, time.Hour); f.Tick(t0); jump(f, -time.Hour) }, believed, Believed},
		{"the coordinator says so too", func(f *Filter) { jump(f, 2*time.Hour); f.Tick(t0); f.Confirm(after(time.Second), t0) }, believed, Believed},
		{"the coordinator says it is 14:00", func(f *Filter) { f.Confirm(after(2*time.Hour), t0) }, late, ClockApart},
		{"the coordinator says it is 10:00", func(f *Filter) { f.Confirm(after(-2*time.Hour), t0) }, early, ClockApart},
		{"the policy was made tomorrow", func(f *Filter) {
			c := *f.snap.Load().conf
			c.NotBefore = after(24 * time.Hour)
			f.Set(&c, t0)
		}, late, ClockEarly},
		{"a new policy changes nothing", func(f *Filter) {
			jump(f, 10*time.Minute)
			f.Set(f.snap.Load().conf, t0)
		}, doubted, ClockJumped},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := timed(t)
			tt.do(f)
			f.Tick(t0)
			if f.Doubt() != tt.why {
				t.Errorf("the clock %v, want: it %v", f.Doubt(), tt.why)
			}
			dials(t, f, t0, tt.want...)
		})
	}
}

// The first packet after a jump is judged by a clock in doubt, and so are the flows that there are: the next Tick says
// which were cut. Flows of rules without a window or an end live on.
func TestClockJumpsUnderFlows(t *testing.T) {
	f := timed(t)
	in(t, f, ip(a4, v4, udp(1, 1, 0)), ByRule)
	in(t, f, ip(a4, v4, udp(4, 4, 0)), ByRule)
	in(t, f, ip(a4, v4, tcp(5, 5, syn)), ByRule)
	jump(f, -90*time.Minute) // it was 13:30
	v := in(t, f, ip(a4, v4, udp(9, 2, 0)), ClockDoubt)
	from, to := netip.MustParseAddrPort(a4+":9"), netip.MustParseAddrPort(v4+":2")
	if got, want := f.Explain(v, from, to, protoUDP), "denied: acls[2] (acl.hujson:2:5) lets alice reach victim on udp/2 only at "+
		"Sun 14:00-15:00 UTC, and the clock of this node has jumped by more than a minute"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	in(t, f, ip(a4, v4, udp(4, 4, 0)), ByFlow)
	in(t, f, ip(a4, v4, udp(1, 1, 0)), ClockDoubt)
	cuts := f.Tick(t0)
	if len(cuts) != 2 {
		t.Fatalf("cuts %+v", cuts)
	}
	for _, c := range cuts {
		if want := map[uint16]Reason{1: ClockDoubt, 5: RuleExpired}[c.Dst.Port()]; c.Why.Reason != want || (c.Proto == protoTCP) != (c.ToSelf != nil) {
			t.Errorf("cut %+v, want for %v", c, want)
		}
	}
	if cuts := f.Confirm(t0, t0); cuts != nil {
		t.Errorf("cuts %+v", cuts)
	}
	in(t, f, ip(a4, v4, udp(1, 1, 0)), ByRule)
	if at := f.Deadline(t0); !at.Equal(after(time.Hour)) {
		t.Errorf("the deadline is %v", at)
	}
	jump(f, -30*time.Minute) // 12:30: the rule may end in half an hour, by the clock
	f.Tick(t0)
	if at := f.Deadline(t0); !at.Equal(after(30 * time.Minute)) {
		t.Errorf("in doubt the deadline is %v", at)
	}
}

// A deny that has ended by all clocks comes back when one of them goes back: flows that began in between end, not only
// new ones.
func TestClockBringsBackDeny(t *testing.T) {
	deny := rule(1, acl.Deny, "a", "v", ports(6))
	deny.Expires = after(-30 * time.Minute)
	f := newMesh(t, deny, rule(2, acl.Accept, "a", "v", anyPort))
	jump(f, 10*time.Minute) // it was 11:50, or is 12:00
	f.Tick(t0)
	in(t, f, ip(a4, v4, udp(6, 6, 0)), ByRule)
	jump(f, time.Hour) // it was 10:50
	if cuts := f.Tick(t0); len(cuts) != 1 || cuts[0].Why.Reason != DenyRule {
		t.Errorf("cuts %+v", cuts)
	}
	in(t, f, ip(a4, v4, udp(6, 6, 0)), DenyRule)
}

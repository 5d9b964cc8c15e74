package main

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Goals, at 40 ms from edge to edge and back, and 80 by relay.
const (
	goalFirst  = 165 * time.Millisecond // first echo by relay
	goalDirect = 150 * time.Millisecond // direct both ways, where no port must be guessed
	goalGuess  = 4 * time.Second
	goalPairs  = 5 * time.Second // where both sides guess

	// leastSlack is what a machine that does other things at the same time may add to each.
	leastSlack = 250 * time.Millisecond
	// overlap is how many datagrams of 100 a second may be lost at a switch there: none but those that the machine drops.
	overlap = 1
)

// slackNow is leastSlack, and more the more wait for each CPU.
func slackNow() time.Duration {
	wait := 1.0
	if one, err := strconv.ParseFloat(strings.Fields(load() + " -")[0], 64); err == nil {
		wait = min(max(wait, one/float64(runtime.NumCPU())), 8)
	}
	return time.Duration(wait * float64(leastSlack))
}

// faults are the goals that a case missed, with slack.
func faults(s spec, r result, slack time.Duration) (bad []string) {
	say := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	if r.Err != "" {
		say("%s", r.Err)
		return bad
	}
	if r.First > goalFirst+slack {
		say("first echo after %v, goal %v", r.First, goalFirst)
	}
	how, worst := expected(s.a, s.b), max(r.DirectA, r.DirectB)
	if s.event == "udp-on" {
		how = "relay"
	}
	both := r.DirectA > 0 && r.DirectB > 0
	limit := goalDirect
	if how == "guess" {
		limit = goalPairs
	}
	switch {
	case how == "any":
	case how == "relay" && both:
		say("direct after %v, expected to go by relay", worst)
	case how != "relay" && !both:
		say("not direct, goal %v", limit)
	case how != "relay" && worst > limit+slack:
		say("direct both ways after %v, goal %v", worst, limit)
	}
	if s.event != "" {
		bad = append(bad, eventFaults(s, r, slack)...)
	}
	return bad
}

// eventFaults are the goals missed after the event.
func eventFaults(s spec, r result, slack time.Duration) (bad []string) {
	say := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	e, err := eventNamed(s.event)
	if err != nil {
		return []string{err.Error()}
	}
	if e.outage > 0 && r.Event.Gap > e.outage+slack {
		say("nothing came back for %v, goal %v", r.Event.Gap, e.outage)
	}
	if e.lossless && r.Event.Lost > overlap {
		say("%d of %d lost, goal none", r.Event.Lost, r.Event.Sent)
	}
	switch {
	case (expected(s.a, s.b) == "guess" || expected(s.a, s.b) == "any") && e.after == "":
		// Luck has a part (docs/guessing.md says how much): the relay will do.
	case r.Back == 0:
		say("the path never was %s again, goal %v", wanted(e, r), e.back)
	case r.Back > e.back+slack:
		say("the path was %s again after %v, goal %v", wanted(e, r), r.Back, e.back)
	}
	if r.Broken != "" && !e.breaks {
		say("the stream broke: %s", r.Broken)
	}
	stall := e.stall
	if stall == 0 {
		stall = max(2*e.outage, time.Second) + 2*time.Second // TCP waits twice as long after each loss
	}
	if !e.breaks && r.Stall > stall+slack {
		say("the stream stood still for %v, goal %v", r.Stall, stall)
	}
	return bad
}

// wanted is the path that an event is to end with.
func wanted(e event, r result) string {
	if e.after != "" {
		return e.after
	}
	if r.DirectA > 0 && r.DirectB > 0 {
		return e.before()
	}
	return "relay"
}

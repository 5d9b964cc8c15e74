package bind

import "time"

const (
	distanceDoubts = 2                      // times that a relay is asked again in a round before it is passed over for its latency
	distanceDoubt  = 300 * time.Millisecond // for the answer to one of them
)

// distances is how far each relay is, by its answers to STUN, and how far that can be trusted. It asks nobody itself.
//
//	begin ── answers: the least of a round counts ─────────────── begin ── none for stunGiveUp: silent
//	            └─ passed over for it? ─ doubt ─ asked again ─ answer, or distanceDoubt is over ─ twice, then it is sure
type distances struct {
	began, before time.Time // this round, and the one before it
	of            map[uint16]distance
}

// distance is how far one relay is.
type distance struct {
	least  time.Duration // of the round of the last answer
	heard  time.Time     // the last answer
	doubts int           // times that it was asked again in this round, though it had answered
	doubt  time.Time     // when that was last, zero once it has answered
}

// begin begins a round: all are asked.
func (d *distances) begin(now time.Time) {
	d.before, d.began = d.began, now
	for id, x := range d.of {
		x.doubts, x.doubt = 0, time.Time{}
		d.of[id] = x
	}
}

// forget leaves those relays out that are not to be kept.
func (d *distances) forget(keep func(relay uint16) bool) {
	for id := range d.of {
		if !keep(id) {
			delete(d.of, id)
		}
	}
}

// answer takes a round trip to a relay. The first of a round makes what was before it void, unless it was asked for more than
// once: where packets are lost the least that was ever measured is the better guess.
func (d *distances) answer(relay uint16, rtt time.Duration, first bool, now time.Time) {
	if d.of == nil {
		d.of = make(map[uint16]distance)
	}
	x, ok := d.of[relay]
	if !ok || rtt < x.least || first && x.heard.Before(d.began) {
		x.least = rtt
	}
	x.heard, x.doubt = now, time.Time{}
	d.of[relay] = x
}

// silent reports whether a relay that has answered does so no more: it was asked in vain in this round, or in the one before
// and has not answered since.
func (d *distances) silent(relay uint16, now time.Time) bool {
	at := d.of[relay].heard
	return at.Before(d.began) && (now.Sub(d.began) >= stunGiveUp || at.Before(d.before))
}

// sure reports whether a relay is surely as far as it seems: one answer that was held up, by a machine that has just begun or
// by a queue, is not to decide on the home relay for hours. If it is not, it is to be asked again where ask is true, and sure
// to be called again at the given time or after its answer.
func (d *distances) sure(relay uint16, now time.Time) (sure, ask bool, again time.Time) {
	x, ok := d.of[relay]
	if !ok || x.heard.Before(d.began) {
		return true, false, time.Time{} // it has not answered, which says enough
	}
	if x.doubt.IsZero() && x.doubts < distanceDoubts {
		x.doubt, ask = now, true
		x.doubts++
		d.of[relay] = x
	}
	if again = x.doubt.Add(distanceDoubt); x.doubt.IsZero() || !again.After(now) {
		return true, ask, time.Time{}
	}
	return false, ask, again
}

// known are the relays' distances, silent ones only if they are asked for.
func (d *distances) known(silent bool, now time.Time) map[uint16]time.Duration {
	m := make(map[uint16]time.Duration, len(d.of))
	for id, x := range d.of {
		if silent || !d.silent(id, now) {
			m[id] = x.least
		}
	}
	return m
}

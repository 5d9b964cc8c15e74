package path

import "time"

// Order says when a message was sealed, by the sender's clock: nanoseconds since 1970, and more for each. A node that was
// started again goes on where its clock is.
type Order uint64

// Next is the order of a message after one of the order o.
func (o Order) Next(now time.Time) Order { return max(o+1, Order(max(now.UnixNano(), 0))) }

const (
	orderLate  = 3 * time.Second // by so much news may come after what was sealed later: longer than for any pong
	orderKinds = 16
)

// ordered tells the news of a peer (Here, Loss, Guess) from what somebody recorded and says again, and from what others
// overtook. Of each kind the newest counts, and none that is old beside whatever else the peer has said.
//
//	here 5 ── here 7 ── here 6 ✗ ── loss 6 ── here 7 ✗ ──── pong 900 ──── loss 8 ✗
//
// A pong is not news but an answer to what we have just asked, so it says what the peer's clock is now, also after it was
// started with one set back: whose news seem old is asked by relay.
type ordered struct {
	top    Order
	newest [orderKinds]Order
}

// old reports whether a message was sealed long before another of the peer's that we have.
func (o *ordered) old(at Order) bool { return at < o.top && o.top-at > Order(orderLate) }

// news reports whether a message of that kind is new.
func (o *ordered) news(kind byte, at Order) bool {
	if newest := &o.newest[kind%orderKinds]; at > *newest && !o.old(at) {
		*newest, o.top = at, max(at, o.top)
		return true
	}
	return false
}

// askOrder asks the peer by relay what its clock is, of which news came that seem old.
func (pr *peer) askOrder(now time.Time, at Order) {
	if pr.order.old(at) && !pr.pings.asked(Relay) && !recent(now, pr.relay.pong, hereDoubt) {
		pr.ping(now, Relay, 0, false)
	}
}

// answer takes the order of an answer to a ping of ours.
func (o *ordered) answer(at Order) {
	if o.old(at) {
		*o = ordered{} // its clock was set back
	}
	o.top = max(o.top, at)
}

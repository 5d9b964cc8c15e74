package bind

import (
	"maps"
	"testing"
	"time"
)

// What is known of relay 1 after rounds and answers, and whether it is to be asked again before it is passed over.
func TestDistances(t *testing.T) {
	const ms = time.Millisecond
	type step struct {
		at    time.Duration
		do    string        // "round", "answer", "late answer" (it was asked several times), "sure?"
		rtt   time.Duration // of an answer
		least time.Duration // as known then, silent or not; 0 for none
		mute  bool          // silent
		doubt string        // to "sure?": "ask", "wait" or "sure"
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"the least of a round counts, and the first of the next makes it void", []step{
			{at: 0, do: "round", mute: true},
			{at: 90 * ms, do: "answer", rtt: 90 * ms, least: 90 * ms},
			{at: 120 * ms, do: "answer", rtt: 30 * ms, least: 30 * ms},
			{at: 180 * ms, do: "answer", rtt: 60 * ms, least: 30 * ms},
			{at: 20 * time.Second, do: "round", least: 30 * ms},
			{at: 20*time.Second + 70*ms, do: "answer", rtt: 70 * ms, least: 70 * ms},
		}},
		{"an answer to a repeated question only counts if it is less", []step{
			{at: 0, do: "round", mute: true},
			{at: 30 * ms, do: "answer", rtt: 30 * ms, least: 30 * ms},
			{at: 20 * time.Second, do: "round", least: 30 * ms},
			{at: 20*time.Second + 400*ms, do: "late answer", rtt: 200 * ms, least: 30 * ms},
			{at: 20*time.Second + 420*ms, do: "late answer", rtt: 20 * ms, least: 20 * ms},
		}},
		{"silent when it was asked in vain for stunGiveUp, and until it answers", []step{
			{at: 0, do: "round", mute: true},
			{at: 30 * ms, do: "answer", rtt: 30 * ms, least: 30 * ms},
			{at: 20 * time.Second, do: "round", least: 30 * ms},
			{at: 20*time.Second + stunGiveUp - ms, do: "look", least: 30 * ms},
			{at: 20*time.Second + stunGiveUp, do: "look", least: 30 * ms, mute: true},
			{at: 40 * time.Second, do: "round", least: 30 * ms, mute: true},
			{at: 40*time.Second + 50*ms, do: "answer", rtt: 50 * ms, least: 50 * ms},
		}},
		{"silent through a round out of turn, too, if it was in the one before", []step{
			{at: 0, do: "round", mute: true},
			{at: 30 * ms, do: "answer", rtt: 30 * ms, least: 30 * ms},
			{at: 20 * time.Second, do: "round", least: 30 * ms},
			{at: 21 * time.Second, do: "round", least: 30 * ms, mute: true},
		}},
		{"who has not answered in this round is not asked again", []step{
			{at: 0, do: "round", mute: true},
			{at: 10 * ms, do: "sure?", mute: true, doubt: "sure"},
			{at: 30 * ms, do: "answer", rtt: 30 * ms, least: 30 * ms},
			{at: 20 * time.Second, do: "round", least: 30 * ms},
			{at: 20 * time.Second, do: "sure?", least: 30 * ms, doubt: "sure"},
		}},
		{"asked twice again, each answer at once followed by the next question", []step{
			{at: 0, do: "round", mute: true},
			{at: 200 * ms, do: "answer", rtt: 200 * ms, least: 200 * ms},
			{at: 200 * ms, do: "sure?", least: 200 * ms, doubt: "ask"},
			{at: 210 * ms, do: "sure?", least: 200 * ms, doubt: "wait"},
			{at: 240 * ms, do: "answer", rtt: 40 * ms, least: 40 * ms},
			{at: 240 * ms, do: "sure?", least: 40 * ms, doubt: "ask"},
			{at: 280 * ms, do: "answer", rtt: 40 * ms, least: 40 * ms},
			{at: 280 * ms, do: "sure?", least: 40 * ms, doubt: "sure"},
			{at: 20 * time.Second, do: "round", least: 40 * ms},
			{at: 20*time.Second + 40*ms, do: "answer", rtt: 40 * ms, least: 40 * ms},
			{at: 20*time.Second + 40*ms, do: "sure?", least: 40 * ms, doubt: "ask"},
		}},
		{"a question that is not answered is waited for no longer than distanceDoubt", []step{
			{at: 0, do: "round", mute: true},
			{at: 200 * ms, do: "answer", rtt: 200 * ms, least: 200 * ms},
			{at: 200 * ms, do: "sure?", least: 200 * ms, doubt: "ask"},
			{at: 200*ms + distanceDoubt - 1, do: "sure?", least: 200 * ms, doubt: "wait"},
			{at: 200*ms + distanceDoubt, do: "sure?", least: 200 * ms, doubt: "sure"},
			{at: 900 * ms, do: "sure?", least: 200 * ms, doubt: "sure"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var d distances
			begin := time.Unix(1e9, 0)
			d.answer(2, ms, true, begin)
			d.forget(func(id uint16) bool { return id != 2 })
			for _, s := range tt.steps {
				now := begin.Add(s.at)
				switch s.do {
				case "round":
					d.begin(now)
				case "answer", "late answer":
					d.answer(1, s.rtt, s.do == "answer", now)
				case "sure?":
					sure, ask, again := d.sure(1, now)
					got := "wait"
					if ask {
						got = "ask"
					} else if sure {
						got = "sure"
					}
					if got != s.doubt || sure != (s.doubt == "sure") || !sure && again.Sub(now) > distanceDoubt {
						t.Errorf("at %v: %s, again after %v, want %s", s.at, got, again.Sub(now), s.doubt)
					}
				}
				want := map[uint16]time.Duration{}
				if s.least > 0 {
					want[1] = s.least
				}
				if got := d.known(true, now); !maps.Equal(got, want) {
					t.Errorf("at %v, after %s: %v, want %v", s.at, s.do, got, want)
				}
				if s.mute {
					clear(want)
				}
				if got := d.known(false, now); !maps.Equal(got, want) {
					t.Errorf("at %v, after %s: %v is heard, want %v", s.at, s.do, got, want)
				}
			}
		})
	}
}

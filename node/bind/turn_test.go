package bind

import (
	"testing"
	"time"
)

// TestTurns is when the reader of transfers gives way: after batches for as long as a flow that sends little is heard,
// and else after what is no batch.
func TestTurns(t *testing.T) {
	const at = int64(time.Hour)
	for _, x := range []struct {
		name  string
		heard int64 // 0: never
		n     int
		size  int
		want  bool
	}{
		{"the first read", 0, 0, 1300, false},
		{"a datagram of a transfer alone", 0, 1, 1300, true},
		{"a few", 0, turnFew, 1300, true},
		{"a batch of a transfer alone", 0, turnFew + 1, 1300, false},
		{"a few beside a request", at - 1, turnFew, 1300, false},
		{"a batch beside a request", at - 1, turnFew + 1, 1300, true},
		{"a batch as long after as is waited for another", at - int64(turnHeard) + 1, turnFew + 1, 1300, true},
		{"a batch when the requests are over", at - int64(turnHeard), turnFew + 1, 1300, false},
		{"a few when the requests are over", at - int64(turnHeard), 1, 1300, true},
		{"an answer, alone", 0, 1, turnLong - 1, false},
		{"nothing yet, beside a request", at - 1, 0, 1300, false},
	} {
		var turns turns
		if x.heard != 0 {
			turns.hear(x.heard)
		}
		if got := turns.over(x.n, x.size, at); got != x.want {
			t.Errorf("%s: gives way %v, want %v", x.name, got, x.want)
		}
	}
}

func BenchmarkGiveWay(b *testing.B) {
	for b.Loop() {
		giveWay()
	}
}

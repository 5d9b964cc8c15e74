package relays

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/meter"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

const (
	size   = 1280 // of a packet
	window = 256  // packets of a pair on their way
	burst  = 32   // packets that are sent at once
)

// data begins like a packet of WireGuard's that carries data, so that nobody takes it for something more urgent.
var data = append([]byte{4, 0, 0, 0}, make([]byte, size-4)...)

// pair is two clients, of which one sends to the other and heeds what arrives, as TCP inside a tunnel would.
type pair struct {
	tx, rx link
	to     id
	also   *id // whom it sends the same, without heed
	credit chan struct{}
	got    atomic.Int64 // packets
}

func newPair(ctx context.Context, r *relay) (p *pair, err error) {
	p = &pair{credit: make(chan struct{}, window)}
	if p.tx, _, err = r.dial(ctx, func(id, [][]byte) {}); err != nil {
		return nil, err
	}
	p.rx, p.to, err = r.dial(ctx, func(_ id, pkts [][]byte) {
		p.got.Add(int64(len(pkts)))
		for range pkts {
			select {
			case <-p.credit:
			default: // it was given up before
			}
		}
	})
	if err != nil {
		p.tx.Close()
		return nil, err
	}
	return p, nil
}

func (p *pair) close() {
	p.tx.Close()
	p.rx.Close()
}

// send keeps the window full until stop is closed. What has not arrived in a tenth of a second is lost.
func (p *pair) send(stop <-chan struct{}) {
	pkts := make([][]byte, burst)
	for i := range pkts {
		pkts[i] = data
	}
	late := time.NewTimer(time.Hour)
	defer late.Stop()
	for {
		for range pkts {
			late.Reset(100 * time.Millisecond)
			select {
			case p.credit <- struct{}{}:
			case <-late.C:
				for len(p.credit) > 0 {
					<-p.credit
				}
			case <-stop:
				return
			}
		}
		p.tx.Send(p.to, pkts)
		if p.also != nil {
			p.tx.Send(*p.also, pkts)
		}
	}
}

// flow has the pairs send for a time, and says what arrived of it, in megabits a second, and what the relay used for that,
// in seconds for a gigabyte.
func flow(ctx context.Context, r *relay, pairs []*pair, d time.Duration) (mbit, cpu float64, err error) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, p := range pairs {
		wg.Go(func() { p.send(stop) })
	}
	defer wg.Wait()
	defer close(stop)
	got := func() (n float64) {
		for _, p := range pairs {
			n += float64(p.got.Load()) * size
		}
		return n
	}
	if err := pause(ctx, d/4); err != nil {
		return 0, 0, err
	}
	t0, n0, u0 := time.Now(), got(), meter.Of(r.keeper.Ready)
	for {
		if err := pause(ctx, d); err != nil {
			return 0, 0, err
		}
		if got() > n0 || time.Since(t0) > wait { // on a machine with much else to do a short time may be too short
			break
		}
	}
	t, n, u := time.Since(t0), got()-n0, meter.Of(r.keeper.Ready)
	if n == 0 {
		return 0, 0, errors.New("nothing arrived")
	}
	return n * 8 / 1e6 / t.Seconds(), (u.CPU - u0.CPU) / n * 1e9, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func pairsTask(n int) func(context.Context, *relay, *report.Section, int, string, time.Duration) error {
	return func(ctx context.Context, r *relay, s *report.Section, round int, name string, d time.Duration) error {
		var pairs []*pair
		for range n {
			p, err := newPair(ctx, r)
			if err != nil {
				return err
			}
			defer p.close()
			pairs = append(pairs, p)
		}
		mbit, cpu, err := flow(ctx, r, pairs, d)
		if err != nil {
			return err
		}
		s.Put(round, r.name, name, "Mbit/s", mbit)
		s.Put(round, r.name, name+", processor of the relay", "s/GB", cpu)
		s.Put(round, r.name, name+", memory", "MB", meter.Of(r.keeper.Ready).RSS)
		return nil
	}
}

// stalledTask is a pair whose sender sends as much to a client that reads, and then to one that has stopped reading; and two
// others, of which one asks and one answers meanwhile.
func stalledTask(ctx context.Context, r *relay, s *report.Section, round int, name string, d time.Duration) error {
	var mbit, p99 [2]float64
	for i, stalls := range []bool{false, true} {
		free := make(chan struct{})
		other, to, err := r.dial(ctx, func(id, [][]byte) {
			if stalls {
				<-free
			}
		})
		if err != nil {
			return err
		}
		p, err := newPair(ctx, r)
		if err == nil {
			p.also = &to
			var took []float64
			var failed error
			var wg sync.WaitGroup
			wg.Go(func() { took, failed = requests(ctx, r, d) })
			mbit[i], _, err = flow(ctx, r, []*pair{p}, d)
			wg.Wait()
			p.close()
			if err = errors.Join(err, failed); err == nil {
				p99[i] = report.Percentile(took, 99) / 1e3
			}
		}
		close(free)
		other.Close()
		if err != nil {
			return err
		}
	}
	s.Put(round, r.name, "a pair beside one that reads", "Mbit/s", mbit[0])
	s.Put(round, r.name, name, "Mbit/s", mbit[1])
	s.Put(round, r.name, "what is left to it by that", "share", mbit[1]/mbit[0])
	s.Put(round, r.name, "request of two others beside one that reads, p99", "ms", p99[0])
	s.Put(round, r.name, "request of two others beside a client that has stalled, p99", "ms", p99[1])
	return nil
}

// requestTask is 64 bytes there and back, one after the other.
func requestTask(ctx context.Context, r *relay, s *report.Section, round int, name string, d time.Duration) error {
	took, err := requests(ctx, r, d)
	if err != nil {
		return err
	}
	s.Put(round, r.name, name+", p50", "µs", report.Percentile(took, 50))
	s.Put(round, r.name, name+", p99", "µs", report.Percentile(took, 99))
	return nil
}

// requests has a client ask another for a time, and a quarter more to warm up, and says how long each answer took, in
// microseconds.
func requests(ctx context.Context, r *relay, d time.Duration) ([]float64, error) {
	back := make(chan struct{}, 1)
	tx, self, err := r.dial(ctx, func(id, [][]byte) {
		select {
		case back <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, err
	}
	defer tx.Close()
	answers := make(chan struct{}, 1)
	rx, to, err := r.dial(ctx, func(id, [][]byte) {
		select {
		case answers <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, err
	}
	defer rx.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	small := [][]byte{data[:64]}
	wg.Go(func() {
		for {
			select {
			case <-answers:
				rx.Send(self, small)
			case <-stop:
				return
			}
		}
	})
	var took []float64
	late := time.NewTimer(time.Hour)
	defer late.Stop()
	// Where a pair leaves them little room, it takes longer to have one answered at all.
	for begin := time.Now(); (time.Since(begin) < d*5/4 || len(took) == 0 && time.Since(begin) < wait) && ctx.Err() == nil; {
		t := time.Now()
		tx.Send(to, small)
		late.Reset(200 * time.Millisecond)
		select {
		case <-back:
			if t.Sub(begin) > d/4 {
				took = append(took, float64(time.Since(t).Nanoseconds())/1e3)
			}
		case <-late.C: // lost, as at most the first ones are
		}
	}
	if len(took) == 0 {
		return nil, errors.New("no request was answered")
	}
	return took, nil
}

package test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hedge-mesh/hedge/test/lab"
)

// pour is datagrams from one host to another at a steady rate, through their interfaces hedge0.
//
//	datagram   number, 8 bytes | when it was sent, nanoseconds, 8 bytes | zeros up to its size
type pour struct {
	from, to *net.UDPConn
	size     int
	sent     atomic.Int64
	came     []atomic.Int64 // by number: nanoseconds it took, plus one; 0 if it has not come
	at       []atomic.Int64 // when
	twice    atomic.Int64
	stop     chan struct{}
	wg       sync.WaitGroup
}

const pourSize = 100

// bigBuffer keeps a busy machine from losing in a socket what Hedge has delivered.
func bigBuffer(_, _ string, c syscall.RawConn) (err error) {
	return c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) })
}

// newPour pours so many datagrams a second, most at the most, until it is ended. There are no bursts of more than 5 ms: what the sender was too
// late for is not sent.
func newPour(t testing.TB, from, to *lab.Host, at netip.AddrPort, rate, most int) *pour {
	t.Helper()
	return newPourOf(t, pourSize, from, to, at, rate, most)
}

// newPourOf pours datagrams of another size.
func newPourOf(t testing.TB, size int, from, to *lab.Host, at netip.AddrPort, rate, most int) *pour {
	t.Helper()
	p := &pour{size: size, came: make([]atomic.Int64, most), at: make([]atomic.Int64, most), stop: make(chan struct{})}
	if err := to.Do(func() error {
		lc := net.ListenConfig{Control: bigBuffer}
		pc, err := lc.ListenPacket(t.Context(), "udp", at.String())
		if err == nil {
			p.to = pc.(*net.UDPConn)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := from.Do(func() (err error) { p.from, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at)); return err }); err != nil {
		p.to.Close()
		t.Fatal(err)
	}
	p.wg.Go(p.receive)
	p.wg.Go(func() { p.send(rate) })
	t.Cleanup(p.end)
	return p
}

func (p *pour) send(rate int) {
	tick := time.NewTicker(max(time.Millisecond, time.Second/time.Duration(rate)))
	defer tick.Stop()
	b := make([]byte, p.size)
	burst := max(1, float64(rate)/200)
	owed, last := 0.0, time.Now()
	for {
		select {
		case <-p.stop:
			return
		case now := <-tick.C:
			owed = min(owed+now.Sub(last).Seconds()*float64(rate), burst)
			last = now
		}
		for ; owed >= 1; owed-- {
			n := p.sent.Load()
			if int(n) == len(p.came) {
				return
			}
			binary.BigEndian.PutUint64(b, uint64(n))
			binary.BigEndian.PutUint64(b[8:], uint64(time.Now().UnixNano()))
			if _, err := p.from.Write(b); err != nil {
				break // the interface's queue is full, or nobody listens yet
			}
			p.sent.Add(1)
		}
	}
}

func (p *pour) receive() {
	for b := make([]byte, 64<<10); ; {
		k, err := p.to.Read(b)
		if err != nil {
			return
		}
		n, now := binary.BigEndian.Uint64(b), time.Now().UnixNano()
		if k != p.size || n >= uint64(len(p.came)) {
			continue
		}
		if p.came[n].Load() != 0 {
			p.twice.Add(1)
			continue
		}
		p.came[n].Store(now - int64(binary.BigEndian.Uint64(b[8:])) + 1)
		p.at[n].Store(now)
	}
}

// end stops it, once what is under way has had its time.
func (p *pour) end() {
	select {
	case <-p.stop:
	default:
		close(p.stop)
		<-time.After(300 * time.Millisecond)
		p.to.Close()
		p.from.Close()
		p.wg.Wait()
	}
}

// spell is what became of the datagrams of a while.
type spell struct {
	sent, lost int
	p50, p99   time.Duration // that they took
	gap        time.Duration // the longest without one coming
}

func (s spell) String() string {
	return fmt.Sprintf("%d of %d lost, %v and %v at p50 and p99, none for %v", s.lost, s.sent, s.p50.Round(10*time.Microsecond), s.p99.Round(10*time.Microsecond), s.gap.Round(time.Millisecond))
}

// over tells of the datagrams from number a to before b.
func (p *pour) over(a, b int64) (s spell) {
	var took []time.Duration
	var at []int64
	for n := a; n < b; n++ {
		s.sent++
		if d := p.came[n].Load(); d == 0 {
			s.lost++
		} else {
			took, at = append(took, time.Duration(d-1)), append(at, p.at[n].Load())
		}
	}
	if len(took) == 0 {
		return s
	}
	slices.Sort(took)
	slices.Sort(at)
	s.p50, s.p99 = took[len(took)/2], took[len(took)*99/100]
	for i := range at[1:] {
		s.gap = max(s.gap, time.Duration(at[i+1]-at[i]))
	}
	return s
}

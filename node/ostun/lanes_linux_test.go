package ostun

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hedge-mesh/hedge/test/lab"
)

// readers are the two of an interface, each in a goroutine of its own. What they read comes out by a channel each.
type readers struct {
	d    *Device
	host *lab.Host
	read []func([][]byte, []int, int) (int, error)
	got  [2]chan []byte
	err  [2]error
	done sync.WaitGroup
}

// isFew says of a packet of UDP that it is of a flow that sends little if its payload says "few".
func isFew(pkt []byte) bool { return bytes.HasPrefix(pkt[min(28, len(pkt)):], []byte("few")) }

func newReaders(t *testing.T) *readers {
	t.Helper()
	r := idleReaders(t)
	for i := range r.read {
		r.start(i, r.d.BatchSize)
	}
	return r
}

// idleReaders read once they are started.
func idleReaders(t *testing.T) *readers {
	t.Helper()
	h := lab.New(t).Host("a")
	r := &readers{d: openOn(t, h), host: h}
	r.read = r.d.Lanes(isFew)
	if len(r.read) != 2 {
		t.Fatalf("%d readers", len(r.read))
	}
	for i := range r.got {
		r.got[i] = make(chan []byte, 10_000)
	}
	t.Cleanup(func() { r.d.Close(); r.done.Wait() })
	must(t, r.d.Set(mesh))
	return r
}

// start has one of them read, in batches of as many as batch says each time.
func (r *readers) start(i int, batch func() int) {
	r.done.Go(func() {
		bufs, sizes := make([][]byte, r.d.BatchSize()), make([]int, r.d.BatchSize())
		for {
			most := batch()
			n, err := r.read[i](bufs[:most], sizes[:most], 16)
			for j := range n {
				r.got[i] <- bytes.Clone(bufs[j][16 : 16+sizes[j]])
			}
			clear(bufs[:n])
			if err != nil {
				r.err[i] = err
				close(r.got[i])
				return
			}
		}
	})
}

func (r *readers) dial(t *testing.T) net.Conn {
	t.Helper()
	var c net.Conn
	must(t, r.host.Do(func() (err error) { c, err = net.Dial("udp4", "100.64.0.2:9"); return err }))
	t.Cleanup(func() { c.Close() })
	return c
}

// at is where Lanes has a reader: the sparse one is first.
func at(who reader) int { return 1 - int(who) }

// next is the payload of a reader's next datagram; what the kernel itself sends is passed over.
func (r *readers) next(t *testing.T, who reader) string {
	t.Helper()
	late := time.After(10 * time.Second)
	for at := at(who); ; {
		select {
		case p, ok := <-r.got[at]:
			if !ok {
				t.Fatal(r.err[at])
			}
			if len(p) > 28 && p[0] == 0x45 && p[9] == unix.IPPROTO_UDP {
				return string(p[28:])
			}
		case <-late:
			t.Fatal("nothing comes")
		}
	}
}

func (r *readers) turn() reader {
	b := &r.d.Device.(*driver).backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.turn
}

// Each reader has what is for it, in order, whoever has the descriptor. A transfer alone has it to itself.
func TestLanes(t *testing.T) {
	r := newReaders(t)
	c := r.dial(t)
	say := func(s string) {
		if _, err := c.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 3 {
		for i := range byte(50) {
			say("few " + string('0'+i))
			say("many " + string('0'+i))
		}
		for i := range byte(50) {
			for who, want := range []string{"many ", "few "} {
				if got := r.next(t, reader(who)); got != want+string('0'+i) {
					t.Fatalf("round %d: reader %d has %q, want %q", round, who, got, want+string('0'+i))
				}
			}
		}
		if r.turn() != sparse {
			t.Errorf("round %d: in company of flows that send little the other reader waits for the kernel", round)
		}
		r.leaveAlone(t, c)
	}
}

// leaveAlone has a transfer be alone for so long that its reader gets the descriptor.
func (r *readers) leaveAlone(t *testing.T, c net.Conn) {
	t.Helper()
	for begin := time.Now(); r.turn() != rest; { // by and by
		if time.Since(begin) > 10*time.Second {
			t.Fatal("a transfer that is alone does not get the descriptor")
		}
		if _, err := c.Write([]byte("many")); err != nil {
			t.Fatal(err)
		}
		r.next(t, rest)
	}
}

// The packet that ends a transfer's being alone does not wait for another to come.
func TestLanesFirst(t *testing.T) {
	r := newReaders(t)
	c := r.dial(t)
	for range 5 {
		r.leaveAlone(t, c)
		if _, err := c.Write([]byte("few")); err != nil {
			t.Fatal(err)
		}
		if got := r.next(t, sparse); got != "few" {
			t.Fatalf("%q", got)
		}
	}
}

// What is put in by us comes out of Read at once, whoever has the descriptor.
func TestLanesInject(t *testing.T) {
	r := newReaders(t)
	c := r.dial(t)
	pkt := append(make([]byte, 28), "injected"...)
	pkt[0], pkt[9] = 0x45, unix.IPPROTO_UDP
	for _, who := range []reader{sparse, rest} {
		for begin := time.Now(); r.turn() != who; {
			if time.Since(begin) > 10*time.Second {
				t.Fatal("the descriptor does not change hands")
			}
			if _, err := c.Write([]byte(map[reader]string{sparse: "few", rest: "many"}[who])); err != nil {
				t.Fatal(err)
			}
			r.next(t, who)
		}
		r.d.Inject([][]byte{pkt})
		if got := r.next(t, rest); got != "injected" {
			t.Errorf("%q", got)
		}
	}
}

// An interface that is closed, or deleted, ends both readers.
func TestLanesEnd(t *testing.T) {
	for name, end := range map[string]func(*readers){
		"closed":  func(r *readers) { r.d.Close() },
		"deleted": func(r *readers) { _ = r.host.Command(t.Context(), "ip", "link", "del", "hedge7").Run() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newReaders(t)
			end(r)
			for range r.got[0] {
			}
			if !errors.Is(r.err[0], os.ErrClosed) {
				t.Errorf("it ends with %v", r.err[0])
			}
			r.d.Close() // as the device does then
			for range r.got[1] {
			}
			if !errors.Is(r.err[1], os.ErrClosed) {
				t.Errorf("the other ends with %v", r.err[1])
			}
		})
	}
}

// What comes by either reader is what was sent, however the packets of a connection are divided.
func TestLanesTransfer(t *testing.T) {
	p := newPair(t, Options{}, Options{})
	wireLanes(t, p.da, p.db, func(pkt []byte) bool { return len(pkt) < 600 })
	transfer(t, p, "100.64.0.2", 20<<20)
}

// wireLanes is wire with two readers at each end.
func wireLanes(t *testing.T, a, b *Device, isSparse func([]byte) bool) {
	var wg sync.WaitGroup
	for _, way := range [][2]*Device{{a, b}, {b, a}} {
		for _, read := range way[0].Lanes(isSparse) {
			wg.Go(func() { carry(way[0].BatchSize(), read, way[1].Write, nil) })
		}
	}
	t.Cleanup(func() { a.Close(); b.Close(); wg.Wait() })
}

// To read a packet of a flow that sends little allocates nothing.
func TestLanesAllocations(t *testing.T) {
	h := lab.New(t).Host("a")
	d := openOn(t, h)
	defer d.Close()
	fns := d.Lanes(isFew)
	must(t, d.Set(mesh))
	var c net.Conn
	must(t, h.Do(func() (err error) { c, err = net.Dial("udp4", "100.64.0.2:9"); return err }))
	defer c.Close()
	bufs, sizes := [][]byte{make([]byte, maxPacket)}, make([]int, 1)
	msg := []byte("few")
	done := make(chan float64)
	go func() { // the goroutine keeps its thread
		done <- testing.AllocsPerRun(100, func() {
			_, _ = c.Write(msg)
			if n, err := fns[0](bufs, sizes, 16); n != 1 || err != nil {
				t.Error(n, err)
			}
		})
	}()
	if n := <-done; n != 0 {
		t.Errorf("%v times", n)
	}
}

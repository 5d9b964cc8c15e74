package ostun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hedge-mesh/hedge/test/lab"
)

// talker sends the datagrams of one flow, numbered.
type talker struct {
	*net.UDPConn
	kind       string // few or many
	sent, came uint32
}

// talk begins a flow, whose datagrams the kernel takes whatever their length.
func (r *readers) talk(t *testing.T, kind string) *talker {
	t.Helper()
	k := &talker{kind: kind}
	must(t, r.host.Do(func() error {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			e := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			})
			return errors.Join(e, err)
		}}
		c, err := lc.ListenPacket(t.Context(), "udp4", "100.64.0.1:0")
		if err == nil {
			k.UDPConn = c.(*net.UDPConn)
			t.Cleanup(func() { c.Close() })
		}
		return err
	}))
	return k
}

// say sends n datagrams of so many bytes, at once if that is to be.
func (k *talker) say(t *testing.T, n, size int, once bool) {
	t.Helper()
	to := &net.UDPAddr{IP: net.IPv4(100, 64, 0, 2), Port: 9}
	var run []byte
	for range n {
		at := len(run)
		run = append(run, make([]byte, size)...)
		copy(run[at:], k.kind)
		binary.BigEndian.PutUint32(run[at+4:], k.sent)
		k.sent++
		if !once {
			if _, err := k.WriteToUDP(run, to); err != nil {
				t.Fatal(err)
			}
			run = run[:0]
		}
	}
	if once {
		oob := binary.NativeEndian.AppendUint64(nil, unix.SizeofCmsghdr+2)
		oob = binary.NativeEndian.AppendUint32(oob, unix.SOL_UDP)
		oob = binary.NativeEndian.AppendUint32(oob, unix.UDP_SEGMENT)
		oob = append(binary.NativeEndian.AppendUint16(oob, uint16(size)), make([]byte, 6)...)
		if _, _, err := k.WriteMsgUDP(run, oob, to); err != nil {
			t.Fatal(err)
		}
	}
}

// hear waits until each of the flows has come as far as it was sent, by the reader that is for it and in order.
func (r *readers) hear(t *testing.T, flows map[uint16]*talker) {
	t.Helper()
	missing := func() (n uint32) {
		for _, k := range flows {
			n += k.sent - k.came
		}
		return n
	}
	late := time.After(5 * time.Second)
	for missing() > 0 {
		var p []byte
		kind := ""
		select {
		case p = <-r.got[at(rest)]:
			kind = "many"
		case p = <-r.got[at(sparse)]:
			kind = "few "
		case <-late:
			var all []string
			for _, k := range flows {
				all = append(all, fmt.Sprintf("%s%d of %d", k.kind, k.came, k.sent))
			}
			t.Fatalf("%d packets lie somewhere, the descriptor is with reader %d: %s", missing(), r.turn(), strings.Join(all, ", "))
		}
		if len(p) < 36 || p[0] != 0x45 || p[9] != unix.IPPROTO_UDP {
			continue // what the kernel itself sends
		}
		k := flows[binary.BigEndian.Uint16(p[20:])]
		if k == nil {
			t.Fatalf("% x comes", p[:36])
		}
		if n := binary.BigEndian.Uint32(p[32:]); k.kind != kind || n != k.came {
			t.Fatalf("%s%d comes by the reader of %s, %d is next", k.kind, n, kind, k.came)
		}
		k.came++
	}
}

func (k *talker) port() uint16 { return uint16(k.LocalAddr().(*net.UDPAddr).Port) }

// TestLanesRandom writes packets of flows of both kinds at random, while the descriptor changes hands often and batches are
// of any size. Whatever it was, all of it comes out without another packet. HEDGE_SEED=n runs one again, though not the order
// of goroutines, HEDGE_RANDOM_SEEDS=n so many.
func TestLanesRandom(t *testing.T) {
	from, n := uint64(0), uint64(6)
	if s, err := strconv.ParseUint(os.Getenv("HEDGE_SEED"), 10, 64); err == nil {
		from, n = s, 1
	}
	if s, err := strconv.ParseUint(os.Getenv("HEDGE_RANDOM_SEEDS"), 10, 64); err == nil {
		n = s
	}
	for seed := from; seed < from+n; seed++ {
		t.Run(fmt.Sprintf("HEDGE_SEED=%d", seed), func(t *testing.T) { lanesRandom(t, seed) })
	}
}

func lanesRandom(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	r := idleReaders(t)
	d := r.d.Device.(*driver)
	d.stays = []time.Duration{0, 100 * time.Microsecond, time.Millisecond}[rnd.IntN(3)]
	flows := map[uint16]*talker{}
	var ports []uint16
	for _, kind := range []string{"few ", "many", "few ", "many", "many"} {
		k := r.talk(t, kind)
		flows[k.port()] = k
		ports = append(ports, k.port())
	}
	long := r.talk(t, "long")
	together := d.writers[0].join.uso // else the kernel cuts
	for i := range r.read {
		own := rand.New(rand.NewPCG(seed, uint64(i)+1))
		r.start(i, func() int { return 1 << own.IntN(8) })
	}
	for range 150 {
		for range 1 + rnd.IntN(1+rnd.IntN(8)) {
			k := flows[ports[rnd.IntN(len(ports))]]
			switch what := rnd.IntN(20); {
			case what == 0:
				long.say(t, 1+rnd.IntN(30), 2000+rnd.IntN(7000), false)
			case what == 1:
				r.d.Wake(time.Duration(rnd.IntN(2)) * 20 * time.Microsecond)
			case what < 6 && together:
				k.say(t, 2+rnd.IntN(50), 100+rnd.IntN(1000), true)
			case what < 9:
				k.say(t, 1+rnd.IntN(20), 12+rnd.IntN(200), false)
			default:
				k.say(t, 1, 12+rnd.IntN(1200), false)
			}
		}
		r.hear(t, flows)
	}
}

// What a batch had no room for is of the next, also while the other reader waits for the kernel.
func TestLanesLeft(t *testing.T) {
	r := idleReaders(t)
	if !r.d.Device.(*driver).writers[0].join.uso {
		t.Skip("the kernel cuts")
	}
	for i := range r.read {
		r.start(i, func() int { return 4 })
	}
	k := r.talk(t, "many")
	k.say(t, 50, 100, true)
	r.hear(t, map[uint16]*talker{k.port(): k})
}

// Many packets of flows that send little, of which a batch waits already, do not overtake each other.
func TestLanesMany(t *testing.T) {
	r := idleReaders(t)
	k := r.talk(t, "few ")
	k.say(t, 3*mostAhead, 12, false)
	for i := range r.read {
		r.start(i, r.d.BatchSize)
	}
	r.hear(t, map[uint16]*talker{k.port(): k})
}

// Who is woken has what waits: else a stack beside the interface, which wakes it all the time, would have all turns.
func TestLanesWake(t *testing.T) {
	r := idleReaders(t)
	r.start(at(sparse), r.d.BatchSize)
	k := r.talk(t, "many")
	bufs, sizes := make([][]byte, r.d.BatchSize()), make([]int, r.d.BatchSize())
	b := &r.d.Device.(*driver).backlog
	for range 10 {
		k.say(t, 1, 100, false)
		for begin, n := time.Now(), 0; n == 0; runtime.Gosched() {
			if time.Since(begin) > 10*time.Second {
				t.Fatal("nothing is left to the reader")
			}
			b.mu.Lock()
			n = b.waiting.Len()
			b.mu.Unlock()
		}
		r.d.Wake(0)
		if n, err := r.d.Read(bufs, sizes, 16); n == 0 || err != nil {
			t.Fatalf("it has %d packets: %v", n, err)
		}
		clear(bufs)
	}
}

// Packets that are all too long for their path, as many as are taken of the kernel at once, keep nothing behind them.
func TestReadBehindTooLong(t *testing.T) {
	r := &readers{host: lab.New(t).Host("a")}
	r.d = openOn(t, r.host)
	must(t, r.d.Set(mesh))
	r.talk(t, "long").say(t, 100, 9000, false)
	r.talk(t, "many").say(t, 1, 12, false)
	came := make(chan string, 1)
	r.done.Go(func() {
		bufs, sizes := make([][]byte, r.d.BatchSize()), make([]int, r.d.BatchSize())
		for {
			n, err := r.d.Read(bufs, sizes, 16)
			if err != nil {
				return
			}
			for i := range n {
				if p := bufs[i][16 : 16+sizes[i]]; len(p) == 40 {
					came <- string(p[28:32])
				}
			}
			clear(bufs)
		}
	})
	defer r.done.Wait()
	defer r.d.Close()
	select {
	case got := <-came:
		if got != "many" {
			t.Errorf("%q", got)
		}
	case <-time.After(5 * time.Second):
		t.Error("it lies behind them")
	}
}

package ostun

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hedge-mesh/hedge/test/lab"
)

// wire carries what one interface Reads to the other's Write, until both are closed. It counts the longest packet.
func wire(t *testing.T, a, b *Device) (longest func() int) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	most := 0
	saw := func(size int) { mu.Lock(); most = max(most, size); mu.Unlock() }
	wg.Go(func() { carry(a.BatchSize(), a.Read, b.Write, saw) })
	wg.Go(func() { carry(b.BatchSize(), b.Read, a.Write, saw) })
	t.Cleanup(func() { a.Close(); b.Close(); wg.Wait() })
	return func() int { mu.Lock(); defer mu.Unlock(); return most }
}

// carry takes packets from one to the other until there are no more, and tells saw, if there is one, of the longest of each
// batch. Every other buffer is lent, and afterwards what was in it is not any more: nobody may keep it.
func carry(batch int, read func([][]byte, []int, int) (int, error), write func([][]byte, int) (int, error), saw func(int)) {
	const offset = 16
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := 0; i < batch; i += 2 {
		bufs[i] = make([]byte, maxPacket)
	}
	scribble := bytes.Repeat([]byte{0xee}, 2*maxPacket)
	out := make([][]byte, 0, batch)
	for {
		n, err := read(bufs, sizes, offset)
		if err != nil {
			return
		}
		out = out[:0]
		for i := range n {
			out = append(out, bufs[i][:offset+sizes[i]])
		}
		if saw != nil && n > 0 {
			saw(slices.Max(sizes[:n]))
		}
		_, _ = write(out, offset)
		for i := 1; i < n; i += 2 {
			b := bufs[i][:cap(bufs[i])]
			copy(b, scribble[:len(b)])
			bufs[i] = nil
		}
	}
}

// pair are two hosts whose interfaces are joined by a wire.
type pair struct {
	a, b   *lab.Host
	da, db *Device
	config [2]Config
}

func newPair(t *testing.T, a, b Options) *pair {
	t.Helper()
	l := lab.New(t)
	p := &pair{a: l.Host("a"), b: l.Host("b")}
	for i, d := range []**Device{&p.da, &p.db} {
		h, o := p.a, a
		if i == 1 {
			h, o = p.b, b
		}
		o.Name = "hedge7"
		if err := h.Do(func() (err error) { *d, err = Open(o); return err }); err != nil {
			t.Skip(err)
		}
		p.config[i] = mesh
		p.config[i].Addrs = addrs(fmt.Sprintf("100.64.0.%d", i+1), fmt.Sprintf("fd7a::%d", i+1))
		must(t, (*d).Set(p.config[i]))
	}
	return p
}

// transfer sends random bytes both ways at once, and checks that they arrive.
func transfer(t *testing.T, p *pair, to string, size int64) {
	t.Helper()
	var l net.Listener
	must(t, p.b.Do(func() (err error) { l, err = net.Listen("tcp", net.JoinHostPort(to, "0")); return err }))
	defer l.Close()
	var c net.Conn
	must(t, p.a.Do(func() (err error) { c, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second); return err }))
	defer c.Close()
	s, err := l.Accept()
	must(t, err)
	defer s.Close()
	must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	must(t, s.SetDeadline(time.Now().Add(30*time.Second)))
	var wg sync.WaitGroup
	one := func(w, r net.Conn, seed byte) {
		var sent, got [sha256.Size]byte
		var both sync.WaitGroup
		both.Go(func() {
			h := sha256.New()
			src := io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
			if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(w, h)}, src, make([]byte, 100_003)); err != nil {
				t.Errorf("send: %v", err)
			}
			_ = w.(*net.TCPConn).CloseWrite()
			h.Sum(sent[:0])
		})
		both.Go(func() {
			h := sha256.New()
			if n, err := io.Copy(h, r); err != nil || n != size {
				t.Errorf("%d bytes of %d came, %v", n, size, err)
			}
			h.Sum(got[:0])
		})
		both.Wait()
		if sent != got {
			t.Error("other bytes came than were sent")
		}
	}
	wg.Go(func() { one(c, s, 1) })
	wg.Go(func() { one(s, c, 2) })
	wg.Wait()
}

// What two kernels exchange by our driver is what was sent, whatever the paths carry; segments are as long as the path.
func TestTransfer(t *testing.T) {
	for _, c := range []struct {
		name string
		fits func(netip.Addr) (int, bool)
		want int // bytes of the longest packet, 0 for the MTU's
	}{
		{"MTU", nil, 1280},
		{"long path", path(8928, true), 8928},
		{"short path", path(600, true), 600},
		{"of one host", path(maxPacket, true), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{PathMTU: c.fits}
			p := newPair(t, o, o)
			if _, ok := p.da.Device.(*driver); !ok {
				t.Fatalf("it is driven by %T", p.da.Device)
			}
			longest := wire(t, p.da, p.db)
			for _, to := range []string{"100.64.0.2", "fd7a::2"} {
				transfer(t, p, to, 5<<20)
			}
			if got := longest(); c.want != 0 && got != c.want || got <= 600 && c.want == 0 {
				t.Errorf("the longest packet has %d bytes, want %d", got, c.want)
			}
		})
	}
}

// Where the kernel has not what our driver takes, wireguard-go's does it.
func TestFallback(t *testing.T) {
	refuse := func(int, string, func(netip.Addr) (int, bool)) (*driver, error) { return nil, unix.EINVAL }
	inner, err := drive(Options{Name: "hedge9"}, refuse)
	if err != nil {
		t.Skip(err)
	}
	defer inner.Close()
	if _, ok := inner.(*driver); ok || inner.BatchSize() != 1 {
		t.Errorf("%T with batches of %d", inner, inner.BatchSize())
	}
	if name, err := inner.Name(); name != "hedge9" || err != nil {
		t.Errorf("its name is %q, %v", name, err)
	}
}

// Datagrams keep their bounds, sent and received many at a time.
func TestDatagrams(t *testing.T) {
	p := newPair(t, Options{}, Options{})
	wire(t, p.da, p.db)
	if !p.db.Device.(*driver).writers[0].join.uso {
		t.Skip("this kernel has no USO")
	}
	for _, to := range []string{"100.64.0.2", "fd7a::2"} {
		transfer(t, p, to, 1) // an IPv6 address is there some time after it was set
		var l, c net.Conn
		must(t, p.b.Do(func() (err error) {
			l, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(to)})
			return err
		}))
		defer l.Close()
		must(t, p.a.Do(func() (err error) { c, err = net.Dial("udp", l.LocalAddr().String()); return err }))
		defer c.Close()
		raw, err := c.(*net.UDPConn).SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000) }))
		must(t, err)
		msg := make([]byte, 20_500)
		_, _ = rand.NewChaCha8([32]byte{3}).Read(msg)
		_, err = c.Write(msg)
		must(t, err)
		must(t, l.SetDeadline(time.Now().Add(5*time.Second)))
		buf := make([]byte, 2000)
		for part := range slices.Chunk(msg, 1000) {
			n, err := l.Read(buf)
			must(t, err)
			if !bytes.Equal(buf[:n], part) {
				t.Fatalf("%s: a datagram of %d bytes, want %d", to, n, len(part))
			}
		}
	}
}

// A datagram that is longer than the interface's packets comes in fragments, and one that may not be fragmented is
// refused to its sender: none vanishes.
func TestLongDatagrams(t *testing.T) {
	p := newPair(t, Options{}, Options{})
	longest := wire(t, p.da, p.db)
	for _, to := range []string{"100.64.0.2", "fd7a::2"} {
		transfer(t, p, to, 1) // an IPv6 address is there some time after it was set
		var l *net.UDPConn
		var c net.Conn
		must(t, p.b.Do(func() (err error) {
			l, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(to)})
			return err
		}))
		defer l.Close()
		must(t, p.a.Do(func() (err error) { c, err = net.Dial("udp", l.LocalAddr().String()); return err }))
		defer c.Close()
		must(t, l.SetReadDeadline(time.Now().Add(10*time.Second)))
		for _, size := range []int{1400, 8000, 60_000} {
			msg, buf := make([]byte, size), make([]byte, maxPacket)
			_, _ = rand.NewChaCha8([32]byte{4}).Read(msg)
			_, err := c.Write(msg)
			must(t, err)
			n, err := l.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], msg) {
				t.Fatalf("%s: of %d bytes %d came, %v", to, size, n, err)
			}
		}
		raw, err := c.(*net.UDPConn).SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			if strings.Contains(to, ":") {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			}
		}))
		must(t, err)
		if _, err := c.Write(make([]byte, 1400)); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%s: 1400 bytes that may not be fragmented: %v, want %v", to, err, unix.EMSGSIZE)
		}
	}
	if n := longest(); n > MinMTU {
		t.Errorf("a packet of %d bytes, %d fit everywhere", n, MinMTU)
	}
}

// What the kernel has queued comes with one Read, up to a batch, in order, and for no memory.
func TestReadBatch(t *testing.T) {
	h := lab.New(t).Host("a")
	d := openOn(t, h)
	defer d.Close()
	must(t, d.Set(mesh))
	var c net.Conn
	must(t, h.Do(func() (err error) { c, err = net.Dial("udp", "100.64.0.2:9"); return err }))
	defer c.Close()
	bufs, sizes := make([][]byte, d.BatchSize()), make([]int, d.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	var numbers []byte
	read := func() {
		n, err := d.Read(bufs, sizes, 16)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if p := bufs[i][16 : 16+sizes[i]]; len(p) == ip4Len+udpLen+5 && bytes.HasSuffix(p[:len(p)-1], []byte("test")) {
				numbers = append(numbers, p[len(p)-1])
			}
		}
	}
	msg := []byte("test0")
	send := func(n int) {
		for i := range n {
			msg[4] = byte(i)
			if _, err := c.Write(msg); err != nil {
				t.Fatal(err)
			}
		}
	}
	const first = 100 // and what the kernel itself has sent
	send(first)
	read()
	if len(numbers) != first || !slices.IsSorted(numbers) {
		t.Errorf("of %d packets one Read gave %v", first, numbers)
	}
	numbers = nil
	send(2 * len(bufs))
	for len(numbers) < 2*len(bufs) {
		before := len(numbers)
		read()
		if got := len(numbers) - before; got != min(len(bufs), 2*len(bufs)-before) {
			t.Fatalf("a Read gave %d of %d packets", got, 2*len(bufs)-before)
		}
	}
	send(50)
	if n := testing.AllocsPerRun(40, func() { read(); numbers = numbers[:0]; send(1) }); n != 0 {
		t.Errorf("a Read allocates %v times", n)
	}
}

// A packet of a flow that sends little does not wait behind all that another has sent before it.
func TestReadFair(t *testing.T) {
	h := lab.New(t).Host("a")
	d := openOn(t, h)
	defer d.Close()
	must(t, d.Set(mesh))
	dial := func() (c net.Conn) {
		must(t, h.Do(func() (err error) { c, err = net.Dial("udp", "100.64.0.2:9"); return err }))
		return c
	}
	long, short := dial(), dial()
	defer long.Close()
	defer short.Close()
	const before = 400 // fewer than the kernel queues
	for range before {
		if _, err := long.Write(make([]byte, 1200)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := short.Write([]byte("short")); err != nil {
		t.Fatal(err)
	}
	bufs, sizes := make([][]byte, d.BatchSize()), make([]int, d.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	n, err := d.Read(bufs, sizes, 16)
	must(t, err)
	at := slices.IndexFunc(bufs[:n], func(b []byte) bool { return bytes.Contains(b[:64], []byte("short")) })
	if turn := (64<<10)/1228 + 1; n != len(bufs) || at < 0 || at > turn+10 { // 10: what the kernel itself has sent
		t.Errorf("of %d packets it is number %d, want one after a turn of the other's, %d", n, at, turn)
	}
}

// An interface that somebody deletes ends Read and Write as Close does.
func TestDeleted(t *testing.T) {
	h := lab.New(t).Host("a")
	d := openOn(t, h)
	must(t, d.Set(mesh))
	done := make(chan error, 1)
	go func() {
		bufs, sizes := [][]byte{make([]byte, maxPacket)}, make([]int, 1)
		for {
			if _, err := d.Read(bufs, sizes, 16); err != nil {
				done <- err
				return
			}
		}
	}()
	if out, err := h.Command(t.Context(), "ip", "link", "del", "hedge7").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read ends with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Read goes on")
	}
	if _, err := d.Write(batch(sample{proto: unix.IPPROTO_TCP, flags: ack}.packet()), 16); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write ends with %v", err)
	}
	if _, err := d.Write(batch([]byte{0x45}), 9); err == nil {
		t.Error("a packet with no room before it was written")
	}
}

// Neither direction allocates for a packet.
func TestNoAllocations(t *testing.T) {
	h := lab.New(t).Host("a")
	d := openOn(t, h)
	must(t, d.Set(mesh))
	s := sample{proto: unix.IPPROTO_TCP, flags: ack, payload: make([]byte, 1228)}
	var pkts [][]byte
	for range 64 {
		pkts = append(pkts, s.packet())
		s.seq += 1228
	}
	bufs, work := batch(pkts...), batch(pkts...)
	copyBufs := func() {
		for i := range bufs {
			copy(work[i], bufs[i])
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		copyBufs()
		if n, err := d.Write(work, 16); n != len(work) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}); n != 0 {
		t.Errorf("Write of %d packets allocates %v times", len(bufs), n)
	}
	in, fits, dst := s.super(100), path(8928, true), make([]byte, maxPacket)
	var sp splitter
	if n := testing.AllocsPerRun(100, func() {
		for sp.start(in, fits); sp.more(); {
			sp.next(dst)
		}
	}); n != 0 {
		t.Errorf("a split allocates %v times", n)
	}
}

func BenchmarkSplit(b *testing.B) {
	in := sample{proto: unix.IPPROTO_TCP, options: 12, flags: ack, payload: make([]byte, 53*1228)}.super(1228)
	dst := make([]byte, maxPacket)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		var s splitter
		for s.start(in, nil); s.more(); {
			s.next(dst)
		}
	}
}

func BenchmarkJoin(b *testing.B) {
	s := sample{proto: unix.IPPROTO_TCP, options: 12, flags: ack, payload: make([]byte, 1228)}
	var pkts [][]byte
	for range 53 {
		pkts = append(pkts, s.packet())
		s.seq += 1228
	}
	bufs := batch(pkts...)
	j := joiner{mtu: MinMTU}
	b.SetBytes(53 * 1228)
	b.ReportAllocs()
	first := slices.Clone(bufs[0])
	for b.Loop() {
		copy(bufs[0], first)
		if n, _ := j.next(bufs, 16); n != 53 {
			b.Fatal(n)
		}
	}
}

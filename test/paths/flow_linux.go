package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

const (
	echoPort = 7
	every    = 10 * time.Millisecond // between datagrams
	proxyAt  = "127.0.0.1:1055"
)

// echo answers UDP and TCP on the site's loopback until it is closed.
func echo(s lab.Space) (stop func(), err error) {
	var pc net.PacketConn
	var ln net.Listener
	at := fmt.Sprintf("127.0.0.1:%d", echoPort)
	if err := s.Do(func() (err error) {
		if pc, err = net.ListenPacket("udp", at); err != nil {
			return err
		}
		ln, err = net.Listen("tcp", at)
		return err
	}); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for b := make([]byte, 2048); ; {
			n, from, err := pc.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				pc.WriteTo(b[:n], from)
			}
		}
	})
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() { io.Copy(c, c); c.Close() })
		}
	})
	return func() {
		pc.Close()
		ln.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	}, nil
}

// socks asks the site's node for a command (RFC 1928) towards an address; at is the address it replied with.
func socks(s lab.Space, command byte, to netip.AddrPort) (c net.Conn, at netip.AddrPort, err error) {
	if err = s.Do(func() error { c, err = net.DialTimeout("tcp", proxyAt, time.Second); return err }); err != nil {
		return nil, at, err
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	c.SetDeadline(time.Now().Add(15 * time.Second))
	b := append([]byte{5, 1, 0, 5, command, 0}, address(to)...)
	if _, err := c.Write(b); err != nil {
		return c, at, err
	}
	var r [12]byte // both answers; an IPv4 address in the second, as the proxy is on loopback
	if _, err := io.ReadFull(c, r[:]); err != nil {
		return c, at, fmt.Errorf("socks: %w", err)
	}
	if r[3] != 0 || r[5] != 1 {
		return c, at, fmt.Errorf("socks: the proxy answers % x", r)
	}
	return c, netip.AddrPortFrom(netip.AddrFrom4([4]byte(r[6:10])), binary.BigEndian.Uint16(r[10:])), c.SetDeadline(time.Time{})
}

// address is a type, an address and a port, as SOCKS5 writes it.
func address(a netip.AddrPort) []byte {
	kind := byte(4)
	if a.Addr().Is4() {
		kind = 1
	}
	return binary.BigEndian.AppendUint16(append([]byte{kind}, a.Addr().AsSlice()...), a.Port())
}

// flow is datagrams on their way to an echo and back, one every 10 ms.
//
//	request  SOCKS5 head | number, 8 bytes | zeros up to 100
type flow struct {
	control net.Conn
	conn    *net.UDPConn
	head    []byte
	stop    chan struct{}
	over    sync.Once
	wg      sync.WaitGroup

	mu      sync.Mutex
	sent    []time.Time
	back    []time.Time // by number; zero if not yet
	dup     int
	order   []uint64 // numbers as they came back, without copies
	resting bool
	each    time.Duration // between datagrams, if not every
}

func startFlow(s lab.Space, to netip.Addr) (*flow, error) {
	control, at, err := socks(s, 3, netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if err != nil {
		return nil, err
	}
	f := &flow{control: control, stop: make(chan struct{})}
	if err := s.Do(func() error { f.conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(at)); return err }); err != nil {
		return nil, errors.Join(err, control.Close())
	}
	f.head = append([]byte{0, 0, 0}, address(netip.AddrPortFrom(to, echoPort))...)
	f.wg.Go(f.receive)
	f.wg.Go(f.send)
	return f, nil
}

func (f *flow) send() {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for b := make([]byte, len(f.head)+100); ; {
		copy(b, f.head)
		f.mu.Lock()
		rest := f.resting || len(f.sent) > 0 && time.Since(f.sent[len(f.sent)-1]) < f.each-every/2
		if !rest {
			binary.BigEndian.PutUint64(b[len(f.head):], uint64(len(f.sent)))
			f.sent, f.back = append(f.sent, time.Now()), append(f.back, time.Time{})
		}
		f.mu.Unlock()
		if !rest {
			f.conn.Write(b)
		}
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
	}
}

func (f *flow) receive() {
	for b := make([]byte, 2048); ; {
		n, err := f.conn.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < len(f.head)+8 {
			continue
		}
		now := time.Now()
		i := binary.BigEndian.Uint64(b[len(f.head):])
		f.mu.Lock()
		switch {
		case i >= uint64(len(f.back)):
		case !f.back[i].IsZero():
			f.dup++
		default:
			f.back[i] = now
			f.order = append(f.order, i)
		}
		f.mu.Unlock()
	}
}

// rest makes the flow pause, or go on.
func (f *flow) rest(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resting = on
}

// pace is how long it waits between datagrams from now on.
func (f *flow) pace(each time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.each = each
}

// end stops sending, waits for what is on its way, and closes.
func (f *flow) end() {
	f.over.Do(func() {
		close(f.stop)
		time.Sleep(400 * time.Millisecond)
		f.conn.Close()
		f.control.Close()
		f.wg.Wait()
	})
}

// start is when the first left.
func (f *flow) start() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.sent) == 0 {
		return time.Now()
	}
	return f.sent[0]
}

// firstEcho is how long the first answer took, of whichever datagram; 0 if there is none.
func (f *flow) firstEcho() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	var first time.Time
	for _, at := range f.back {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if first.IsZero() {
		return 0
	}
	return first.Sub(f.sent[0])
}

// lastEcho is when the latest answer came.
func (f *flow) lastEcho() (last time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.order) > 0 {
		last = slices.MaxFunc(f.back, time.Time.Compare)
	}
	return last
}

// tally is what became of the datagrams sent from one moment to another.
type tally struct {
	Sent int           `json:"sent"`
	Lost int           `json:"lost"`
	Late int           `json:"late"` // overtaken by another
	Gone []int         `json:"gone"` // the first of those lost, by number from the start of the flow
	Gap  time.Duration `json:"gap"`  // the longest between answers; to the end, if there came none
}

func (f *flow) between(from, to time.Time) (t tally) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := from
	for i, at := range f.sent {
		if at.Before(from) || !at.Before(to) {
			continue
		}
		t.Sent++
		if f.back[i].IsZero() {
			if t.Lost++; t.Lost <= 8 {
				t.Gone = append(t.Gone, i)
			}
		}
	}
	arrivals := slices.DeleteFunc(slices.Clone(f.back), func(at time.Time) bool { return !at.After(from) || at.After(to) })
	slices.SortFunc(arrivals, time.Time.Compare)
	for _, at := range append(arrivals, to) {
		t.Gap = max(t.Gap, at.Sub(last))
		last = at
	}
	var top uint64
	for _, i := range f.order {
		if at := f.sent[i]; !at.Before(from) && at.Before(to) && i < top {
			t.Late++
		}
		top = max(top, i)
	}
	return t
}

// stream is a TCP connection through the mesh that is never idle: 4 kB every 50 ms, echoed.
type stream struct {
	conn net.Conn
	wg   sync.WaitGroup
	stop chan struct{}

	mu  sync.Mutex
	at  []time.Time // when bytes came back
	err error
	out int
	in  int
}

func startStream(ctx context.Context, s lab.Space, to netip.Addr) (*stream, error) {
	c, _, err := socks(s, 1, netip.AddrPortFrom(to, echoPort))
	if err != nil {
		return nil, err
	}
	st := &stream{conn: c, stop: make(chan struct{})}
	st.wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for b := make([]byte, 4096); ; {
			n, err := c.Write(b)
			st.mu.Lock()
			st.out += n
			st.mu.Unlock()
			if err != nil {
				return
			}
			select {
			case <-st.stop:
				return
			case <-tick.C:
			}
		}
	})
	st.wg.Go(func() {
		for b := make([]byte, 64<<10); ; {
			n, err := c.Read(b)
			st.mu.Lock()
			if n > 0 {
				st.in += n
				st.at = append(st.at, time.Now())
			}
			if err != nil {
				st.err = err
			}
			st.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	return st, nil
}

// gap is the longest time without progress.
func (s *stream) gap(from, to time.Time) (gap time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := from
	for _, at := range s.at {
		if at.After(from) && at.Before(to) {
			gap = max(gap, at.Sub(last))
			last = at
		}
	}
	return max(gap, to.Sub(last))
}

// last is when bytes came back last.
func (s *stream) last() (at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.at) > 0 {
		at = s.at[len(s.at)-1]
	}
	return at
}

// alive says why it is not.
func (s *stream) alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *stream) end() {
	close(s.stop)
	s.conn.Close()
	s.wg.Wait()
}

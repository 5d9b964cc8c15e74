package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// world is two nodes, of which the first dials the second.
type world interface {
	Dial(ctx context.Context, port uint16) (net.Conn, error)
	Listen(port uint16) (net.Listener, error)
	Close()
}

const (
	port  = 7000
	mtu   = 1280
	mss   = mtu - 40         // TCP payload of a full packet
	chunk = 64 << 10         // bytes in one write or read of a program
	wait  = 30 * time.Second // for anything that should take milliseconds
)

// What a connection is for, its first byte.
const (
	sink   = 's' // what comes is read and counted
	source = 'g' // data is sent until the connection ends
	echo   = 'e' // what comes is sent back
)

func child(o options) (err error) {
	if o.allocs != "" {
		runtime.MemProfileRate = 256
	}
	w, err := open(o)
	if err != nil {
		return err
	}
	defer w.Close()
	b := &bench{w: w}
	if err := b.serve(); err != nil {
		return err
	}
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if o.allocs != "" {
		defer func() { err = errors.Join(err, writeAllocs(o.allocs)) }()
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	if err := out.Encode(answer{}); err != nil { // ready
		return err
	}
	for {
		var r request
		if err := in.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a, err := b.do(r)
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func writeAllocs(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	runtime.GC() // the profile is that of the last collection
	return errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
}

func open(o options) (world, error) {
	switch o.world {
	case "hedge":
		return openHedge(o.rules)
	case "wireguard":
		return openWireGuard()
	case "stack":
		return openStack()
	}
	return nil, fmt.Errorf("no world is called %q; there are %q", o.world, worlds)
}

// bench makes measurements in a world.
type bench struct {
	w     world
	bytes atomic.Int64 // received by either end of bulk connections
	bulk  atomic.Int64 // bulk connections whose far end has not ended
}

// serve answers at the second node for as long as the world lasts.
func (b *bench) serve() error {
	l, err := b.w.Listen(port)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.answer(c)
		}
	}()
	return nil
}

func (b *bench) answer(c net.Conn) {
	defer c.Close()
	buf := make([]byte, chunk)
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		return
	}
	switch buf[0] {
	case sink:
		defer b.bulk.Add(-1)
		b.drain(c, buf)
	case source:
		defer b.bulk.Add(-1)
		fill(c, buf)
	case echo:
		_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, buf)
	}
}

func (b *bench) drain(c net.Conn, buf []byte) {
	for {
		n, err := c.Read(buf)
		b.bytes.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func fill(c net.Conn, buf []byte) {
	for {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func (b *bench) dial(kind byte) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	c, err := b.w.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	_, err = c.Write([]byte{kind})
	return c, err
}

// load runs bulk streams until the returned function is called, which waits until they have ended.
func (b *bench) load(streams int, back bool) (stop func(), err error) {
	var conns []net.Conn
	var wg sync.WaitGroup
	stop = func() {
		for _, c := range conns {
			_ = c.SetDeadline(time.Now())
			_ = c.Close()
		}
		wg.Wait()
		for t := time.Now(); b.bulk.Load() > 0 && time.Since(t) < wait; { // what is under way would disturb the next
			time.Sleep(time.Millisecond)
		}
	}
	for range streams {
		kind := byte(sink)
		if back {
			kind = source
		}
		c, err := b.dial(kind)
		if err != nil {
			stop()
			return nil, err
		}
		b.bulk.Add(1)
		conns = append(conns, c)
		wg.Go(func() {
			if buf := make([]byte, chunk); back {
				b.drain(c, buf)
			} else {
				fill(c, buf)
			}
		})
	}
	return stop, nil
}

func (b *bench) do(r request) (answer, error) {
	d := time.Duration(r.MS) * time.Millisecond
	switch r.Test {
	case "tcp":
		return b.tcp(r, d)
	case "rtt":
		return b.rtt(r, d)
	case "mem":
		return answer{RSS: resident()}, nil
	}
	return answer{}, fmt.Errorf("no test is called %q", r.Test)
}

func (b *bench) tcp(r request, d time.Duration) (answer, error) {
	stop, err := b.load(r.Streams, r.Back)
	if err != nil {
		return answer{}, err
	}
	defer stop()
	time.Sleep(d / 4)
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	t0, c0, n0 := time.Now(), cpu(), b.bytes.Load()
	time.Sleep(d)
	t, c, n := time.Since(t0), cpu()-c0, float64(b.bytes.Load()-n0)
	rss := resident()
	runtime.ReadMemStats(&m1)
	if n == 0 {
		return answer{}, fmt.Errorf("no byte arrived within %v", d)
	}
	return answer{
		Gbit: n * 8 / 1e9 / t.Seconds(), CPU: c.Seconds() / n * 1e9,
		Allocs: float64(m1.Mallocs-m0.Mallocs) / (n / mss), RSS: rss,
	}, nil
}

// rtt sends one request of 64 bytes after the other and waits for each to be answered.
func (b *bench) rtt(r request, d time.Duration) (answer, error) {
	c, err := b.dial(echo)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	stop, err := b.load(r.Streams, r.Back)
	if err != nil {
		return answer{}, err
	}
	defer stop()
	_ = c.SetDeadline(time.Now().Add(d*5/4 + wait))
	msg := make([]byte, 64)
	var took []time.Duration
	n0 := b.bytes.Load()
	for t0 := time.Now(); ; {
		t := time.Now()
		if _, err := c.Write(msg); err != nil {
			return answer{}, err
		}
		if _, err := io.ReadFull(c, msg); err != nil {
			return answer{}, err
		}
		since := t.Sub(t0)
		if since > d/4 {
			took = append(took, time.Since(t))
		}
		if since > d*5/4 && len(took) > 0 {
			break
		}
	}
	bulk := float64(b.bytes.Load()-n0) * 8 / 1e9 / (d.Seconds() * 5 / 4)
	if r.Streams > 0 && bulk == 0 {
		return answer{}, errors.New("the stream beside the requests stood still")
	}
	slices.Sort(took)
	us := func(q int) float64 { return float64(took[(len(took)-1)*q/100].Nanoseconds()) / 1e3 }
	return answer{Gbit: bulk, P50: us(50), P99: us(99)}, nil
}

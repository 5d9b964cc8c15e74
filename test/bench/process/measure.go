package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/meter"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

func (b *bench) do(r Request) (Answer, error) {
	d := time.Duration(r.MS) * time.Millisecond
	if r.Test == "open" && r.Place != nil {
		return Answer{}, b.open(*r.Place)
	}
	if b.w == nil {
		return Answer{}, errors.New("no world is open")
	}
	switch r.Test {
	case "tcp":
		return b.tcp(r, d)
	case "udp":
		return b.udp(r, d)
	case "rtt":
		return b.rtt(r, d)
	case "mem":
		u := meter.Self()
		return Answer{RSS: u.RSS, Peak: u.Peak}, nil
	}
	return Answer{}, fmt.Errorf("no test is called %q", r.Test)
}

// use is what the process has used between two looks.
type use struct {
	took   time.Duration
	cpu    float64 // seconds
	allocs float64
	rss    float64 // megabytes, at the end
}

// begin looks the first time, and the function it returns the second.
func begin() func() use {
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	t0, before := time.Now(), meter.Self()
	return func() use {
		took, after := time.Since(t0), meter.Self()
		u := use{took: took, cpu: after.CPU - before.CPU, rss: after.RSS}
		runtime.ReadMemStats(&m1)
		u.allocs = float64(m1.Mallocs - m0.Mallocs)
		return u
	}
}

func (b *bench) tcp(r Request, d time.Duration) (Answer, error) {
	stop, err := b.load(r.Streams, r.Back)
	if err != nil {
		return Answer{}, err
	}
	defer stop()
	time.Sleep(d / 4)
	n0, end := b.bytes.Load(), begin()
	time.Sleep(d)
	for t0 := time.Now(); b.bytes.Load() == n0 && time.Since(t0) < patience; { // on a machine that has much else to do
		time.Sleep(time.Millisecond)
	}
	n, u := float64(b.bytes.Load()-n0), end()
	if n == 0 {
		return Answer{}, fmt.Errorf("no byte arrived within %v", d+patience)
	}
	return Answer{Gbit: n * 8 / 1e9 / u.took.Seconds(), CPU: u.cpu / n * 1e9, Allocs: u.allocs / (n / mss), RSS: u.rss}, nil
}

// udp sends datagrams as fast as they are taken; what arrives counts.
func (b *bench) udp(r Request, d time.Duration) (Answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	c, err := b.w.Dial(ctx, "udp", port)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	msg := make([]byte, r.Size)
	n0 := b.packets.Load()
	flood := func(d time.Duration) (sent float64, err error) {
		for end := time.Now().Add(d); time.Now().Before(end) || b.packets.Load() == n0 && time.Since(end) < patience; {
			for range 32 {
				if _, err := c.Write(msg); err != nil {
					return sent, err
				}
				sent++
			}
		}
		return sent, nil
	}
	if _, err := flood(d / 4); err != nil {
		return Answer{}, err
	}
	n0 = b.packets.Load()
	end := begin()
	sent, err := flood(d)
	u, got := end(), float64(b.packets.Load()-n0)
	if err != nil {
		return Answer{}, err
	}
	b.quiet()
	if got == 0 {
		return Answer{}, fmt.Errorf("of %.0f datagrams none arrived", sent)
	}
	return Answer{Packets: got / u.took.Seconds(), Lost: max(0, 100*(1-got/sent)), CPU: u.cpu * 1e6 / got, Allocs: u.allocs / sent}, nil
}

// quiet waits until no more datagrams arrive, for they would disturb what is measured next.
func (b *bench) quiet() {
	for t0, n := time.Now(), int64(-1); n != b.packets.Load() && time.Since(t0) < wait; time.Sleep(20 * time.Millisecond) {
		n = b.packets.Load()
	}
}

// rtt sends one request of 64 bytes after the other and waits for each to be answered.
func (b *bench) rtt(r Request, d time.Duration) (Answer, error) {
	c, err := b.dial(echo)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	stop, err := b.load(r.Streams, r.Back)
	if err != nil {
		return Answer{}, err
	}
	defer stop()
	_ = c.SetDeadline(time.Now().Add(d*5/4 + wait))
	msg := make([]byte, 64)
	var took []float64
	n0 := b.bytes.Load()
	for t0 := time.Now(); ; {
		t := time.Now()
		if _, err := c.Write(msg); err != nil {
			return Answer{}, err
		}
		if _, err := io.ReadFull(c, msg); err != nil {
			return Answer{}, err
		}
		since := t.Sub(t0)
		if since > d/4 {
			took = append(took, float64(time.Since(t).Nanoseconds())/1e3)
		}
		if since > d*5/4 && len(took) > 0 {
			break
		}
	}
	bulk := float64(b.bytes.Load()-n0) * 8 / 1e9 / (d.Seconds() * 5 / 4)
	if r.Streams > 0 && bulk == 0 {
		return Answer{}, errors.New("the stream beside the requests stood still")
	}
	return Answer{Gbit: bulk, P50: report.Percentile(took, 50), P99: report.Percentile(took, 99)}, nil
}

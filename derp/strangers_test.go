package derp

import (
	"crypto/tls"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// T3: ten thousand connections that never prove anything, each with half a TLS greeting, take less than 64 MiB, and neither
// who is connected nor who connects meanwhile notices.
func TestTenThousandStrangers(t *testing.T) {
	if testing.Short() {
		t.Skip("opens 10,000 connections")
	}
	r := newRelay(t)
	conf, err := r.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(Path, r.Server)
	var met atomic.Int64
	keep := Strangers(MaxStrangers)
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute, MaxHeaderBytes: 8 << 10, ErrorLog: quiet, ConnState: func(c net.Conn, s http.ConnState) {
		if keep(c, s); s == http.StateNew {
			met.Add(1)
		}
	}}
	done := make(chan error)
	go func() { done <- hs.Serve(tls.NewListener(ln, conf)) }()
	r.addr, r.url = ln.Addr().String(), "https://"+ln.Addr().String()
	defer func() { r.Server.Close(); hs.Close(); <-done }()

	a, b := newClientOf(t, newNode(r.control), r).waitUp(t), newClientOf(t, newNode(r.control), r).waitUp(t)
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := memory()
	var all []net.Conn
	defer func() {
		var wg sync.WaitGroup
		for part := range 8 {
			wg.Go(func() {
				for i := part; i < len(all); i += 8 {
					all[i].Close()
				}
			})
		}
		wg.Wait()
	}()
	slowest := time.Duration(0)
	for i := range 10_000 {
		c, err := net.Dial("tcp", r.addr)
		if err != nil && i > 8000 {
			t.Fatalf("after %d: %v", i, err) // the relay holds more of them than it may
		} else if err != nil {
			t.Skipf("this machine lets a process have %d connections: %v", i, err)
		}
		all = append(all, c)
		if _, err := c.Write([]byte{22, 3, 1, 2, 0, 1}); err != nil { // a record of 512 bytes, one of them
			continue // the relay has closed it already
		}
		if i%500 == 0 {
			start := time.Now()
			a.Send(b.pub, [][]byte{data("x")})
			receive(t, "a packet", b.got)
			slowest = max(slowest, time.Since(start))
		}
	}
	eventually(t, "the relay has met them all", func() bool { return met.Load() >= 10_002 })
	if took := memory() - before; took > 64<<20 {
		t.Errorf("10,000 strangers take %d MiB", took>>20)
	} else {
		t.Logf("10,000 strangers take %d kB; a packet took %v at most", took>>10, slowest)
	}
	if slowest > time.Second {
		t.Errorf("a packet of those who are known took %v", slowest)
	}
	c := newClientOf(t, newNode(r.control), r).waitUp(t)
	c.Send(b.pub, [][]byte{data("new")})
	receive(t, "a packet of one who came after them", b.got)
}

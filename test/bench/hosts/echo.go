package hosts

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/net/proxy"

	"github.com/hedge-mesh/hedge/test/bench/kid"
	"github.com/hedge-mesh/hedge/test/bench/report"
)

// Jobs are what kids of this package do.
var Jobs = map[string]func([]string) error{
	"echo":    answer,
	"request": func([]string) error { return kid.Serve(latency{}, ask) },
	"janitor": janitor,
}

// answer sends back what it gets on the TCP port that its argument names, until its parent ends.
func answer(args []string) error {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if f, err := blocking(c); err == nil {
					defer f.Close()
					_, _ = io.Copy(struct{ io.Writer }{f}, struct{ io.Reader }{f})
				}
			}()
		}
	}()
	return kid.Serve(l.Addr().String(), func(json.RawMessage) (string, error) { return "", nil })
}

// blocking is a connection whose reads wait in the kernel, on a thread of its own, as those of most programs do. By Go's
// poller each wakes two threads more, on the cores that are measured.
func blocking(c net.Conn) (*os.File, error) {
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		return nil, err
	}
	runtime.LockOSThread() // for good
	_ = f.Fd()             // has the file block
	return f, nil
}

// asking is small requests, one after the other, through a SOCKS5 proxy if one is named.
type asking struct {
	To    string        `json:"to"`
	Socks string        `json:"socks,omitempty"`
	For   time.Duration `json:"for"`
}

// latency is how long they took, in microseconds.
type latency struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// dial connects, and gives up waiting for an answer some time after the requests should be over.
func (q asking) dial() (net.Conn, error) {
	d := &net.Dialer{Timeout: upTime}
	if q.Socks == "" {
		return d.Dial("tcp", q.To)
	}
	c, err := d.Dial("tcp", q.Socks)
	if err != nil {
		return nil, err
	}
	through, err := proxy.SOCKS5("tcp", q.Socks, nil, already{c})
	if err == nil {
		_, err = through.Dial("tcp", q.To)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// already is a dialer that has dialled.
type already struct{ c net.Conn }

func (a already) Dial(string, string) (net.Conn, error) { return a.c, nil }

// ask sends 64 bytes and waits until they are back, again and again; the first tenth of the time does not count.
func ask(q asking) (latency, error) {
	c, err := q.dial()
	if err != nil {
		return latency{}, err
	}
	defer c.Close()
	f, err := blocking(c)
	if err != nil {
		return latency{}, err
	}
	defer f.Close()
	begin := time.Now()
	late := time.AfterFunc(q.For+upTime, func() { _ = c.(*net.TCPConn).CloseRead() }) // a file that blocks knows no deadlines
	defer late.Stop()
	msg := make([]byte, 64)
	var took []float64
	for {
		t := time.Now()
		if _, err := f.Write(msg); err != nil {
			return latency{}, err
		}
		if _, err := io.ReadFull(f, msg); err != nil {
			return latency{}, err
		}
		if t.Sub(begin) >= q.For/10 {
			took = append(took, float64(time.Since(t).Nanoseconds())/1e3)
		}
		if t.Sub(begin) >= q.For && len(took) > 0 {
			return latency{report.Percentile(took, 50), report.Percentile(took, 99)}, nil
		}
	}
}

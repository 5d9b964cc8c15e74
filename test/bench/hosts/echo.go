package hosts

import (
	"encoding/json"
	"io"
	"net"
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
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
			}()
		}
	}()
	return kid.Serve(l.Addr().String(), func(json.RawMessage) (string, error) { return "", nil })
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

// ask sends 64 bytes and waits until they are back, again and again; the first tenth of the time does not count.
func ask(q asking) (latency, error) {
	dial := (&net.Dialer{Timeout: upTime}).Dial
	if q.Socks != "" {
		d, err := proxy.SOCKS5("tcp", q.Socks, nil, proxy.Direct)
		if err != nil {
			return latency{}, err
		}
		dial = d.Dial
	}
	c, err := dial("tcp", q.To)
	if err != nil {
		return latency{}, err
	}
	defer c.Close()
	begin := time.Now()
	_ = c.SetDeadline(begin.Add(q.For + upTime))
	msg := make([]byte, 64)
	var took []float64
	for {
		t := time.Now()
		if _, err := c.Write(msg); err != nil {
			return latency{}, err
		}
		if _, err := io.ReadFull(c, msg); err != nil {
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

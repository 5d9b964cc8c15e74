package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/proxy"
)

// task is one measurement.
type task struct {
	name   string
	kernel bool // only where the tunnel is an interface of the host
	run    func(r *report, w *world, name string, d time.Duration) error
}

var tasks = []task{
	{"tcp, 1 stream", false, tcp("-P", "1")},
	{"tcp, 1 stream, back", false, tcp("-P", "1", "-R")},
	{"tcp, 8 streams", false, tcp("-P", "8")},
	{"tcp, 8 streams, back", false, tcp("-P", "8", "-R")},
	{"udp, 64 bytes", true, udp(64)},
	{"udp, 1200 bytes", true, udp(1200)},
	{"request, idle", false, requests(false)},
	{"request, beside a stream", false, requests(true)},
}

// result is what is needed of iperf3's JSON.
type result struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Bytes   float64 `json:"bytes"`
			Seconds float64 `json:"seconds"`
			Bits    float64 `json:"bits_per_second"`
		} `json:"sum_received"`
		Sum struct {
			Seconds float64 `json:"seconds"`
			Packets float64 `json:"packets"`
			Lost    float64 `json:"lost_packets"`
		} `json:"sum"`
	} `json:"end"`
}

// iperf asks again while the server is still ending the test before, for which it says that it is busy.
func (w *world) iperf(d time.Duration, args ...string) (result, error) {
	for tries := 1; ; tries++ {
		res, err := w.iperfOnce(d, args...)
		if err == nil || !strings.Contains(err.Error(), "busy") || tries == 20 {
			return res, err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (w *world) iperfOnce(d time.Duration, args ...string) (result, error) {
	args = append([]string{"-c", w.address, "-p", strconv.Itoa(iperfPort), "-J", "-t", strconv.FormatFloat(d.Seconds(), 'f', 1, 64), "--connect-timeout", "2000"}, args...)
	name := "iperf3"
	if w.socks != "" {
		conf := filepath.Join(w.dir, "proxychains.conf")
		host, port, err := net.SplitHostPort(w.socks)
		if err != nil {
			return result{}, err
		}
		if err := os.WriteFile(conf, []byte(fmt.Sprintf("strict_chain\nquiet_mode\n[ProxyList]\nsocks5 %s %s\n", host, port)), 0o600); err != nil {
			return result{}, err
		}
		name, args = "proxychains4", append([]string{"-q", "-f", conf, "iperf3"}, args...)
	}
	out, err := withTimeout(in(w.a, name, args...), d+20*time.Second)
	var res result
	if i := strings.IndexByte(string(out), '{'); i >= 0 {
		if jerr := json.Unmarshal(out[i:], &res); jerr == nil && res.Error != "" {
			return res, errors.New(res.Error)
		} else if jerr != nil {
			return res, jerr
		}
	}
	if err != nil {
		var x *exec.ExitError
		if errors.As(err, &x) {
			err = fmt.Errorf("%w: %s", err, x.Stderr)
		}
	}
	return res, err
}

func tcp(args ...string) func(*report, *world, string, time.Duration) error {
	return func(r *report, w *world, name string, d time.Duration) error {
		c0 := w.cpu()
		res, err := w.iperf(d, append([]string{"-O", "1"}, args...)...)
		if err != nil {
			return err
		}
		used := w.cpu() - c0
		x := res.End.Received
		r.put(w.name, name, "Gbit/s", x.Bits/1e9)
		// The second that iperf3 leaves out used the processor too.
		if total := x.Bits / 8 * (x.Seconds + 1); total > 0 && len(w.tunnel) > 0 {
			r.put(w.name, name+", processor", "s/GB", used/total*1e9)
		}
		r.put(w.name, name+", memory", "MB", w.memory())
		return nil
	}
}

// udp sends as fast as it can; what arrives counts.
func udp(size int) func(*report, *world, string, time.Duration) error {
	return func(r *report, w *world, name string, d time.Duration) error {
		res, err := w.iperf(d, "-u", "-b", "0", "-l", strconv.Itoa(size))
		if err != nil {
			return err
		}
		x := res.End.Sum
		if x.Packets == 0 || x.Seconds == 0 {
			return errors.New("iperf3 counted no packets")
		}
		r.put(w.name, name+", arrived", "1000/s", (x.Packets-x.Lost)/x.Seconds/1e3)
		r.put(w.name, name+", lost", "%", 100*x.Lost/x.Packets)
		return nil
	}
}

// requests measures 64 bytes there and back, one after the other.
func requests(beside bool) func(*report, *world, string, time.Duration) error {
	return func(r *report, w *world, name string, d time.Duration) error {
		done := make(chan error, 1)
		if beside {
			go func() {
				_, err := w.iperf(d + 2*time.Second)
				done <- err
			}()
			time.Sleep(time.Second)
		} else {
			done <- nil
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		args := []string{"-request", net.JoinHostPort(w.address, strconv.Itoa(echoPort)), "-time", d.String()}
		c := in(w.a, self, args...)
		c.Env = append(os.Environ(), "HOSTS_SOCKS="+w.socks)
		out, err := withTimeout(c, d+20*time.Second)
		if err != nil {
			return errors.Join(fmt.Errorf("requests: %w", err), <-done)
		}
		var p [2]float64
		if err := json.Unmarshal(out, &p); err != nil {
			return err
		}
		r.put(w.name, name+", p50", "µs", p[0])
		r.put(w.name, name+", p99", "µs", p[1])
		return <-done
	}
}

// request is the other program: it answers requests, or sends them and prints the median and the 99th percentile.
func request(o options) error {
	if at, ok := strings.CutPrefix(o.echo, "listen:"); ok {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
			}()
		}
	}
	dial := net.Dial
	if at := os.Getenv("HOSTS_SOCKS"); at != "" {
		d, err := proxy.SOCKS5("tcp", at, nil, proxy.Direct)
		if err != nil {
			return err
		}
		dial = d.Dial
	}
	c, err := dial("tcp", o.echo)
	if err != nil {
		return err
	}
	defer c.Close()
	msg := make([]byte, 64)
	var took []float64
	for end := time.Now().Add(o.time); time.Now().Before(end); {
		t := time.Now()
		if _, err := c.Write(msg); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, msg); err != nil {
			return err
		}
		took = append(took, float64(time.Since(t).Nanoseconds())/1e3)
	}
	slices.Sort(took)
	return json.NewEncoder(os.Stdout).Encode([]float64{took[len(took)/2], took[len(took)*99/100]})
}

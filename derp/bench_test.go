package derp

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rs/zerolog"

	"github.com/hedge-mesh/hedge/node/key"
)

// The benchmarks measure a relay in a process of its own: this test binary, run with HEDGE_TEST_RELAY set to tls or plain.
// It reads two lines, its key and the control key to trust, writes its address, and ends with its input.
func serveForBenchmark() {
	debug.SetGCPercent(50)
	in := bufio.NewReader(os.Stdin)
	line := func() string { s, _ := in.ReadString('\n'); return strings.TrimSpace(s) }
	rk, err := key.ParseRelayPrivate(line())
	var control key.ControlPublic
	if err2 := control.UnmarshalText([]byte(line())); err != nil || err2 != nil {
		fmt.Println(err, err2)
		os.Exit(1)
	}
	s := NewServer(ServerConfig{Key: rk, Trust: []key.ControlPublic{control}, MaxClients: 20_000, UDP: true, Log: zerolog.Nop()})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	pc, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go s.ServeUDP(pc)
	fmt.Println(ln.Addr())
	if os.Getenv("HEDGE_TEST_RELAY") == "tls" {
		conf, _ := s.TLSConfig()
		ln = tls.NewListener(ln, conf)
	}
	mux := http.NewServeMux()
	mux.Handle(Path, s)
	go (&http.Server{Handler: mux, ConnState: Strangers(MaxStrangers), ErrorLog: quiet}).Serve(ln)
	io.Copy(io.Discard, in)
	fmt.Fprintf(os.Stderr, "%+v\n", s.Stats())
}

// process starts a relay in another process, and returns it and its process ID.
func process(b *testing.B, kind string) (*relay, int) {
	b.Helper()
	rk := key.NewRelay()
	r := &relay{control: key.NewControl(), Server: &Server{pub: key.PublicOf(rk)}}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "HEDGE_TEST_RELAY="+kind)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if testing.Verbose() {
		cmd.Stderr = os.Stderr
	}
	if err1 != nil || err2 != nil || cmd.Start() != nil {
		b.Fatal("cannot start a relay", err1, err2)
	}
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	fmt.Fprintf(in, "%s\n%s\n", rk.Secret(), key.PublicOf(r.control))
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	r.url = map[string]string{"tls": "https://", "plain": "http://"}[kind] + strings.TrimSpace(addr)
	return r, cmd.Process.Pid
}

// BenchmarkRelay is what a relay carries in packets of 1280 B, when pairs of nodes send as fast as the relay takes it, many
// packets a message.
func BenchmarkRelay(b *testing.B) {
	for _, kind := range []string{"tls", "plain"} {
		for _, pairs := range []int{1, 10} {
			for _, batch := range []int{1, 16, 32} {
				if pairs > 1 && batch != 16 {
					continue
				}
				b.Run(fmt.Sprintf("%s/pairs=%d/batch=%d", kind, pairs, batch), func(b *testing.B) { benchRelay(b, kind, pairs, batch) })
			}
		}
	}
}

func benchRelay(b *testing.B, kind string, pairs, batch int) {
	const size = 1280
	r, _ := process(b, kind)
	var got, sent atomic.Int64
	var senders []*websocket.Conn
	var msgs [][]byte
	for range pairs {
		from, to := newNode(r.control), newNode(r.control)
		rx := to.raw(b, r)
		senders = append(senders, from.raw(b, r))
		var msg []byte
		for range batch {
			msg = appendPacket(msg, to.pub.Raw(), append(data(""), make([]byte, size-4)...))
		}
		msgs = append(msgs, msg)
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 0, MaxMessage)
			for {
				_, rd, err := rx.NextReader()
				if err != nil {
					return
				}
				m, err := readMessage(rd, buf)
				if err != nil {
					return
				}
				got.Add(int64(len(m) / (size + headerLen)))
			}
		}()
		b.Cleanup(func() { rx.NetConn().Close(); <-done })
	}
	b.SetBytes(size)
	b.ResetTimer()
	var tx sync.WaitGroup
	for i := range pairs {
		tx.Add(1)
		go func() {
			defer tx.Done()
			for sent.Add(int64(batch)) <= int64(b.N) {
				if senders[i].WriteMessage(websocket.BinaryMessage, msgs[i]) != nil {
					return
				}
			}
		}()
	}
	tx.Wait()
	s := b.Elapsed().Seconds()
	b.ReportMetric(float64(got.Load())*size*8/s/1e6, "Mbit/s")
	b.ReportMetric(100*(1-min(1, float64(got.Load())/float64(b.N))), "%lost")
}

// BenchmarkPairs is pairs of Clients through a relay, by WebSocket or UDP, each with at most 256 packets on their way: unlike
// BenchmarkRelay's, their senders heed what arrives, as TCP inside does.
func BenchmarkPairs(b *testing.B) {
	for _, kind := range []string{"tls", "udp"} {
		for _, pairs := range []int{1, 10} {
			b.Run(fmt.Sprintf("%s/pairs=%d", kind, pairs), func(b *testing.B) {
				r, _ := process(b, "tls")
				benchPairs(b, pairs, func() (tx, rx *benchClient) {
					return newBenchClient(b, r, kind == "udp"), newBenchClient(b, r, kind == "udp")
				})
			})
		}
	}
}

// BenchmarkStalled is what is left to a pair when its sender sends as much to a client that reads, and to one that has
// stopped: the ratio says what a stalled client costs others.
func BenchmarkStalled(b *testing.B) {
	for _, kind := range []string{"reads", "stalled"} {
		b.Run(kind, func(b *testing.B) {
			r, _ := process(b, "tls")
			other := newNode(r.control)
			ws := other.raw(b, r)
			done := make(chan struct{})
			go func() {
				defer close(done)
				if kind == "reads" {
					io.Copy(io.Discard, ws.NetConn())
				}
			}()
			b.Cleanup(func() { ws.NetConn().Close(); <-done })
			benchPairs(b, 1, func() (tx, rx *benchClient) {
				tx, rx = newBenchClient(b, r, false), newBenchClient(b, r, false)
				tx.other = other.pub
				return tx, rx
			})
		})
	}
}

// benchClient is a Client with a window of packets on their way to it.
type benchClient struct {
	*Client
	pub    key.NodePublic
	other  key.NodePublic // whom a sender sends as much, unless zero
	credit chan struct{}
}

func newBenchClient(b *testing.B, r *relay, udp bool) *benchClient {
	b.Helper()
	n := newNode(r.control)
	c := &benchClient{pub: n.pub, credit: make(chan struct{}, 256)}
	cfg := ClientConfig{URLs: []string{r.url}, Key: r.pub, Node: n.pub, Machine: n.machine, Ticket: func() []byte { return n.ticket }, Proxy: noProxy,
		Receive: func(_ key.NodePublic, pkts [][]byte) {
			for range pkts {
				select {
				case <-c.credit:
				default: // from before
				}
			}
		}}
	if !udp {
		cfg.ListenUDP = func() (net.PacketConn, error) { return nil, net.ErrClosed }
	}
	c.Client = NewClient(cfg)
	b.Cleanup(func() { c.Close() })
	eventually(b, "the link", func() bool {
		c.Send(c.pub, [][]byte{data("to myself")})
		bd := c.bond.Load()
		return c.Up() && (!udp || bd != nil && bd.size.Load() > 0)
	})
	return c
}

// await takes one place in the window.
func (c *benchClient) await() bool {
	select {
	case c.credit <- struct{}{}:
		return true
	default:
	}
	select {
	case c.credit <- struct{}{}:
		return true
	case <-time.After(100 * time.Millisecond):
		return false
	}
}

func benchPairs(b *testing.B, pairs int, mk func() (tx, rx *benchClient)) {
	const size = 1280
	var all [][2]*benchClient
	for range pairs {
		tx, rx := mk()
		all = append(all, [2]*benchClient{tx, rx})
	}
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	var lost atomic.Int64
	for _, p := range all {
		wg.Go(func() {
			packet := append(data(""), make([]byte, size-4)...)
			var pkts [][]byte
			for range b.N / pairs {
				for !p[1].await() { // some were lost
					for len(p[1].credit) > 0 {
						<-p[1].credit
						lost.Add(1)
					}
				}
				if pkts = append(pkts, packet); len(pkts) == 32 {
					p[0].Send(p[1].pub, pkts)
					if !p[0].other.IsZero() {
						p[0].Send(p[0].other, pkts)
					}
					pkts = pkts[:0]
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric((float64(b.N)-float64(lost.Load()))*size*8/b.Elapsed().Seconds()/1e6, "Mbit/s")
	b.ReportMetric(100*float64(lost.Load())/float64(b.N), "%lost")
}

// BenchmarkIdleMemory is the relay's resident memory for each client that is connected and quiet. Run it with -benchtime 3000x.
func BenchmarkIdleMemory(b *testing.B) {
	for _, kind := range []string{"tls", "plain"} {
		b.Run(kind, func(b *testing.B) {
			r, pid := process(b, kind)
			newNode(r.control).raw(b, r)
			before := rss(b, pid)
			var wg sync.WaitGroup
			todo := make(chan struct{})
			for range 8 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for range todo {
						ws, err := newNode(r.control).tryRaw(r)
						if err != nil {
							b.Error(err)
							return
						}
						b.Cleanup(func() { ws.NetConn().Close() })
					}
				}()
			}
			b.ResetTimer()
			for range b.N {
				todo <- struct{}{}
			}
			close(todo)
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(rss(b, pid)-before)/float64(b.N), "kB/client")
		})
	}
}

// BenchmarkStrangerMemory is the same for a connection that says nothing. Run it with -benchtime 10000x.
func BenchmarkStrangerMemory(b *testing.B) {
	r, pid := process(b, "tls")
	newNode(r.control).raw(b, r)
	before := rss(b, pid)
	for range b.N {
		c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "https://"))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
	}
	newNode(r.control).raw(b, r) // the last of them is accepted
	b.ReportMetric(float64(rss(b, pid)-before)/float64(b.N), "kB/connection")
}

func rss(b *testing.B, pid int) (kb int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Skip("no /proc here")
	}
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, "VmRSS: %d kB", &kb)
	}
	return kb
}

// BenchmarkForward is a relay's own work on a message of 32 packets, without sockets.
func BenchmarkForward(b *testing.B) {
	c, dst := benchSessions()
	to := dst.ticket.Node.Raw()
	var clean []byte
	for range 32 {
		clean = appendPacket(clean, to, append(data(""), make([]byte, 1276)...))
	}
	msg := make([]byte, len(clean))
	b.SetBytes(int64(len(msg)))
	b.ReportAllocs()
	for b.Loop() {
		copy(msg, clean)
		if e := c.forward(msg); e != nil {
			b.Fatal(e.text)
		}
	}
}

func benchSessions() (c, dst *session) {
	s := &Server{}
	m := &mesh{nodes: map[key.NodePublic]*session{}}
	for _, p := range []**session{&c, &dst} {
		*p = &session{s: s, mesh: m, ticket: Ticket{Node: key.ExchangePublic(key.NewNode())}}
		(*p).q.maxBytes, (*p).q.maxPackets = 256<<10, 512
		(*p).q.wake()
		m.nodes[(*p).ticket.Node] = *p
	}
	return c, dst
}

// BenchmarkAdmit is the cost of looking at a proof: a good one, and a stranger's.
func BenchmarkAdmit(b *testing.B) {
	control := key.NewControl()
	s := NewServer(ServerConfig{Key: key.NewRelay(), Trust: []key.ControlPublic{key.PublicOf(control)}})
	n := newNode(control)
	for name, auth := range map[string]string{
		"good":     newProof(s.pub, n.ticket, n.machine, time.Now()),
		"stranger": newProof(s.pub, n.ticketUntil(key.NewControl(), time.Now().Add(time.Hour)), n.machine, time.Now()),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				s.checkProof(auth, time.Now())
			}
		})
	}
}

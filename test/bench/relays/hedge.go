package relays

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

// relayLine is what the relay prints when it is ready: its URL and its key.
var relayLine = regexp.MustCompile(`https://\S+#(relay:\S+)`)

// hedge runs `hedge relay`, and dials it as a node does, by TLS only or by UDP as well.
func (r *relay) hedge(ctx context.Context, bin, dir string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	metrics := l.Addr().String()
	_ = l.Close()
	control := key.NewControl()
	var pub key.RelayPublic
	found := func(said []byte) bool {
		m := relayLine.FindSubmatch(said)
		return m != nil && pub.UnmarshalText(bytes.TrimSpace(m[1])) == nil
	}
	if err := r.run(ctx, dir, found, bin, "relay", "--listen", r.addr, "--url", "https://"+r.addr, "--state-dir", dir,
		"--coordinator-key", key.PublicOf(control).String(), "--metrics", metrics, "--max-clients", "20000", "--log-level", "error"); err != nil {
		return err
	}
	r.dial = func(ctx context.Context, receive func(id, [][]byte)) (link, id, error) {
		node, machine := key.ExchangePublic(key.NewNode()), key.NewMachine()
		ticket := derp.Ticket{Node: node, Machine: key.PublicOf(machine), Issued: time.Now().Add(-time.Minute), Expires: time.Now().Add(24 * time.Hour)}.Sign(control)
		cfg := derp.ClientConfig{URLs: []string{"https://" + r.addr}, Key: pub, Node: node, Machine: machine, Ticket: func() []byte { return ticket },
			Proxy:   func(*http.Request) (*url.URL, error) { return nil, nil },
			Receive: func(from key.NodePublic, pkts [][]byte) { receive(from.Raw(), pkts) }}
		if r.name == TLS {
			cfg.ListenUDP = func() (net.PacketConn, error) { return nil, errors.New("by TLS only") }
		}
		up := make(chan struct{}, 1)
		cfg.Status = func(is bool, _ error) {
			if is {
				select {
				case up <- struct{}{}:
				default:
				}
			}
		}
		c := &hedgeLink{c: derp.NewClient(cfg), pub: node}
		select {
		case <-up:
		case <-ctx.Done():
			c.Close()
			return nil, id{}, ctx.Err()
		case <-time.After(wait):
			c.Close()
			return nil, id{}, errors.New("the relay lets nobody in")
		}
		if r.name == UDP {
			if err := c.awaitUDP(ctx, metrics); err != nil {
				c.Close()
				return nil, id{}, err
			}
		}
		return c, node.Raw(), nil
	}
	return nil
}

type hedgeLink struct {
	c   *derp.Client
	pub key.NodePublic
}

func (l *hedgeLink) Send(to id, pkts [][]byte) { l.c.Send(key.NodePublicFromRaw(to), pkts) }
func (l *hedgeLink) Close()                    { _ = l.c.Close() }

// awaitUDP sends itself packets until the relay gets them by UDP: a client takes it up when there is traffic.
func (l *hedgeLink) awaitUDP(ctx context.Context, metrics string) error {
	first, err := udpPackets(ctx, metrics)
	for end := time.Now().Add(wait); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		l.c.Send(l.pub, [][]byte{data})
		var n float64
		if n, err = udpPackets(ctx, metrics); err == nil && n >= first+4 {
			return nil
		}
	}
	return errors.Join(errors.New("packets do not go by UDP"), err, ctx.Err())
}

var udpIn = regexp.MustCompile(`(?m)^hedge_relay_udp_packets_total\{direction="in"\} (\S+)$`)

// udpPackets is how many packets the relay got by UDP.
func udpPackets(ctx context.Context, metrics string) (float64, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metrics+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		return 0, err
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		return 0, err
	}
	m := udpIn.FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("the relay counts no packets by UDP")
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

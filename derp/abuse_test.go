package derp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/hedge-mesh/hedge/node/key"
)

// wsFrame is a raw WebSocket frame (RFC 6455 section 5.2) with a mask of zeros.
func wsFrame(b0 byte, declared uint64, masked bool, payload []byte) []byte {
	b := []byte{b0, 127}
	if masked {
		b[1] |= 0x80
	}
	b = binary.BigEndian.AppendUint64(b, declared)
	if masked {
		b = append(b, 0, 0, 0, 0)
	}
	return append(b, payload...)
}

// TestAbuse: an admitted node that breaks the rules is cut off, and others notice nothing.
func TestAbuse(t *testing.T) {
	const fin, bin = 0x80, 2
	r := newRelay(t)
	r.Server.idle, r.Server.last = time.Second, 20*time.Millisecond // what never ends a message is cut off after a second
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	to := b.pub.Raw()
	packet := appendPacket(nil, to, data("x"))
	control := func(p ...byte) []byte {
		return wsFrame(fin|bin, uint64(headerLen+len(p)), true, appendPacket(nil, [32]byte{}, p))
	}
	message := func(p []byte) []byte { return wsFrame(fin|bin, uint64(len(p)), true, p) }
	for _, c := range []struct {
		name  string
		write []byte // over and over, if again
		again bool
	}{
		{"a frame that says it has 1 GiB", wsFrame(fin|bin, 1<<30, true, make([]byte, 1<<16)), false},
		{"a frame of negative length", wsFrame(fin|bin, 1<<63, true, nil), false},
		{"a message of 64 KiB and a byte", message(make([]byte, MaxMessage+1)), false},
		{"fragments of a byte, more than 64 KiB of them", append(wsFrame(bin, 1, true, []byte{1}), []byte(strings.Repeat(string(wsFrame(0, 1, true, []byte{1})), MaxMessage))...), false},
		{"fragments of nothing for ever", wsFrame(0, 0, true, nil), true},
		{"a message that never comes", wsFrame(fin|bin, 1000, true, []byte{1}), false},
		{"a compressed message", wsFrame(fin|0x40|bin, 40, true, make([]byte, 40)), false},
		{"a reserved bit", wsFrame(fin|0x10|bin, 40, true, make([]byte, 40)), false},
		{"no mask", wsFrame(fin|bin, uint64(len(packet)), false, packet), false},
		{"an unknown opcode", wsFrame(fin|5, 4, true, make([]byte, 4)), false},
		{"a text message", wsFrame(fin|1, uint64(len(packet)), true, packet), false},
		{"a flood of WebSocket pings", []byte{0x89, 0x80, 0, 0, 0, 0}, true},
		{"a flood of WebSocket pongs", []byte{0x8a, 0x80, 0, 0, 0, 0}, true},
		{"a flood of pings", control(kindPing, 1, 2, 3, 4, 5, 6, 7, 8), true},
		{"an empty message", message(nil), false},
		{"half a header", message(packet[:20]), false},
		{"half a packet", message(packet[:len(packet)-1]), false},
		{"a packet of nothing", message(packet[: headerLen-2 : headerLen-2]), false},
		{"a packet of length zero", message(append(append([]byte{}, to[:]...), 0, 0)), false},
		{"a packet and a half", message(append(packet[:len(packet):len(packet)], packet[:10]...)), false},
		{"a short ping", control(kindPing, 1), false},
		{"a pong out of the blue", control(kindPong, 1, 2, 3, 4, 5, 6, 7, 8), false},
		{"a notice that somebody is gone", control(append([]byte{kindGone}, to[:]...)...), false},
		{"a drain", control(kindDrain), false},
		{"something unknown", control(99), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ws := newNode(r.control).raw(t, r)
			raw := ws.NetConn()
			raw.SetDeadline(time.Now().Add(patience))
			if c.name == "fragments of nothing for ever" {
				raw.Write(wsFrame(bin, 0, true, nil))
			}
			ended := make(chan error, 1)
			go func() {
				_, err := io.Copy(io.Discard, raw)
				ended <- err
			}()
			for {
				_, err := raw.Write(c.write)
				if !c.again || err != nil {
					break
				}
			}
			if err := receive(t, "the end of the connection", ended); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("it was let go on")
			}
		})
	}
	eventually(t, "all are gone", func() bool { return r.Stats().Clients == 1 })
	a := newClientOf(t, newNode(r.control), r).waitUp(t)
	a.Send(b.pub, [][]byte{data("still here")})
	if got := receive(t, "a packet", b.got); got.data != string(data("still here")) && got.data != string(data("x")) {
		t.Errorf("got %q", got.data)
	}
}

// TestCompressionIsNotNegotiated: a node that offers it does not get it, and so has no bomb to throw.
func TestCompressionIsNotNegotiated(t *testing.T) {
	r := newRelay(t)
	n := newNode(r.control)
	d := websocket.Dialer{TLSClientConfig: clientTLS(r.pub, "127.0.0.1", nil), EnableCompression: true, Subprotocols: []string{Subprotocol}}
	ws, resp, err := d.DialContext(t.Context(), "wss://"+r.addr+Path, map[string][]string{"Authorization": {newProof(r.pub, n.ticket, n.machine, time.Now())}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.NetConn().Close()
	if h := resp.Header.Get("Sec-Websocket-Extensions"); h != "" {
		t.Errorf("negotiated %q", h)
	}
}

// TestHostileRelay: a client survives whatever a relay says.
func TestHostileRelay(t *testing.T) {
	var got []string
	c := &Client{cfg: ClientConfig{Receive: func(_ key.NodePublic, pkts [][]byte) { got = append(got, fmt.Sprint(len(pkts))) }}, redial: make(chan struct{}, 1)}
	c.ctx, c.cancel = t.Context(), func() {}
	c.q.dead = true
	l := &link{c: c}
	k := [32]byte{1}
	for _, m := range []struct {
		msg []byte
		ok  bool
	}{
		{nil, true},
		{[]byte{1}, false},
		{make([]byte, headerLen), false},
		{appendPacket(nil, k, data("a")), true},
		{append(appendPacket(nil, k, data("a")), 1), false},
		{appendPacket(nil, [32]byte{}, []byte{kindGone}), true},
		{appendPacket(nil, [32]byte{}, []byte{kindPing}), true},
		{appendPacket(nil, [32]byte{}, []byte{kindDrain, 1, 2}), true},
		{appendPacket(nil, [32]byte{}, []byte{200}), true},
	} {
		if err := l.take(m.msg); (err == nil) != m.ok {
			t.Errorf("message %x: %v", m.msg, err)
		}
	}
}

// TestUnauthenticatedConnectionsAreCheap: strangers who connect and say nothing keep nobody else out.
func TestUnauthenticatedConnectionsAreCheap(t *testing.T) {
	r := newRelay(t)
	var first net.Conn
	for range 200 { // twice as many as the server keeps
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if first == nil {
			first = c
		}
	}
	first.SetReadDeadline(time.Now().Add(patience / 2)) // before the server's own patience ends
	if _, err := first.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the first stranger still has its place: %v", err)
	}
	a := newClientOf(t, newNode(r.control), r).waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	a.Send(b.pub, [][]byte{data("x")})
	receive(t, "a packet", b.got)
}

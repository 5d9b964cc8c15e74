package derp

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/hedge-mesh/hedge/node/key"
)

// link is one of a client's connections. Its reader goroutine belongs to it, its writer is the client's.
type link struct {
	c      *Client
	ws     *websocket.Conn
	raw    net.Conn
	ticket Ticket
	up     time.Time

	messages atomic.Uint64 // that came, the welcome among them
	heard    atomic.Int64  // nanoseconds since the client's epoch: last
	sent     atomic.Int64  // the first since then, or zero
	data     atomic.Int64  // the last packet of a node
	stirring atomic.Bool   // the manager looks at sent
	draining atomic.Bool
	over     atomic.Bool // so is the session at the relay
	pulse    pulse       // the manager's
	err      error       // why the reader ended; read it after Client.ended

	pkts [][]byte // the reader's
}

func (l *link) hangUp() {
	if t, ok := l.raw.(*tls.Conn); ok {
		t.NetConn().Close()
		return
	}
	l.raw.Close()
}

// write sends a message. Only the client's writer calls it.
func (l *link) write(b *block) error {
	if l.sent.Load() == 0 {
		l.sent.Store(int64(l.c.since()))
		if l.stirring.CompareAndSwap(false, true) {
			l.c.poke(l.c.stir)
		}
	}
	l.ws.SetWriteDeadline(time.Now().Add(writeTimeout))
	return l.ws.WriteMessage(websocket.BinaryMessage, b.bytes())
}

// read is the reader goroutine.
func (l *link) read() {
	defer l.c.wg.Done()
	l.err = l.readAll()
	l.over.Store(true)
	l.hangUp()
	select {
	case l.c.ended <- l:
	case <-l.c.ctx.Done():
	}
}

func (l *link) readAll() error {
	buf := make([]byte, 0, MaxMessage)
	for {
		kind, r, err := l.ws.NextReader()
		if err != nil {
			return readError(err)
		}
		if kind != websocket.BinaryMessage {
			return fmt.Errorf("derp: the relay sent a message of kind %d, want binary", kind)
		}
		msg, err := readMessage(r, buf)
		if err != nil {
			return readError(err)
		}
		l.messages.Add(1)
		l.sent.Store(0) // before heard: see Client.beat
		l.heard.Store(int64(l.c.since()))
		if err := l.take(msg); err != nil {
			return err
		}
	}
}

func readError(err error) error {
	var ce *websocket.CloseError
	if errors.As(err, &ce) {
		for _, e := range endings {
			if e.code == ce.Code {
				return e.err
			}
		}
		return fmt.Errorf("derp: the relay ended the connection: %s (%d)", oneLine(ce.Text), ce.Code)
	}
	return fmt.Errorf("derp: connection to the relay lost: %w", err)
}

// take hands the packets of a message to Receive, neighbours from one node together.
func (l *link) take(msg []byte) error {
	l.c.recv.Lock()
	defer l.c.recv.Unlock()
	for len(msg) > 0 {
		p, rest, err := cutPacket(msg)
		if err != nil {
			return err
		}
		from := [key.Size]byte(p)
		if from == [key.Size]byte{} {
			l.told(p[headerLen:])
			msg = rest
			continue
		}
		l.pkts = append(l.pkts[:0], p[headerLen:])
		for len(rest) > 0 {
			q, more, err := cutPacket(rest)
			if err != nil {
				return err
			}
			if [key.Size]byte(q) != from {
				break
			}
			l.pkts, rest = append(l.pkts, q[headerLen:]), more
		}
		msg = rest
		if l.c.ctx.Err() == nil {
			l.c.busy()
			if l.data.Store(int64(l.c.since())); l.stirring.CompareAndSwap(false, true) {
				l.c.poke(l.c.stir)
			}
			l.c.cfg.Receive(key.NodePublicFromRaw(from), l.pkts)
		}
	}
	return nil
}

// told handles what the relay itself says; a later version may say more than is understood here.
func (l *link) told(payload []byte) {
	switch {
	case payload[0] == kindPing && len(payload) == 9:
		l.c.control(kindPong, payload[1:])
	case payload[0] == kindGone && len(payload) == 1+key.Size && l.c.cfg.Gone != nil && l.c.ctx.Err() == nil:
		l.c.cfg.Gone(key.NodePublicFromRaw([key.Size]byte(payload[1:])))
	case payload[0] == kindUDP && len(payload) == 1+offerLen:
		select {
		case l.c.offers <- offer{l, [offerLen]byte(payload[1:])}:
		case <-l.c.ctx.Done():
		}
	case payload[0] == kindDrain:
		l.draining.Store(true)
		l.c.poke(l.c.redial)
	}
}

func (l *link) ping() {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(l.c.since())) // any eight bytes will do: what counts is that something is heard
	l.c.control(kindPing, b[:])
}

package process

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	port       = 7000
	mtu        = 1280
	udpHeaders = 28               // IPv4 and UDP
	mss        = mtu - 40         // TCP payload of a full packet
	chunk      = 64 << 10         // bytes in one write or read of a program
	wait       = 30 * time.Second // for anything that should take milliseconds
	patience   = 5 * time.Second  // for the first byte or packet of a measurement
)

// What a connection is for, its first byte.
const (
	sink   = 's' // what comes is read and counted
	source = 'g' // data is sent until the connection ends
	echo   = 'e' // what comes is sent back
)

// bench makes measurements in a world.
type bench struct {
	w         nodes
	datagrams net.PacketConn // of the second node
	bytes     atomic.Int64   // received by either end of bulk connections
	packets   atomic.Int64   // datagrams received by the second node
	bulk      atomic.Int64   // bulk connections whose far end has not ended
}

func (b *bench) open(p Place) (err error) {
	if b.w != nil {
		return errors.New("a world is open already")
	}
	if b.w, err = openNodes(p); err != nil {
		return err
	}
	return b.serve()
}

func (b *bench) close() {
	if b.w != nil {
		b.w.Close()
	}
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
	if b.datagrams, err = b.w.ListenPacket(port); err != nil {
		return err
	}
	go func() {
		for buf := make([]byte, mtu); ; b.packets.Add(1) {
			if _, _, err := b.datagrams.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	return nil
}

func (b *bench) answer(c net.Conn) {
	defer c.Close()
	var kind [1]byte
	if _, err := io.ReadFull(c, kind[:]); err != nil {
		return
	}
	switch kind[0] {
	case sink:
		defer b.bulk.Add(-1)
		b.drain(c, make([]byte, chunk))
	case source:
		defer b.bulk.Add(-1)
		fill(c, make([]byte, chunk))
	case echo: // of which there may be hundreds, whose memory is not to be measured
		_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4<<10))
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
	c, err := b.w.Dial(ctx, "tcp", port)
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

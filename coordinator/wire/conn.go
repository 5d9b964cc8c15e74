package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

// Both ends say "still here" this often, and give up on an end that was silent for three times as long. Proxies cut
// what is idle for a minute.
const (
	aliveEvery = 20 * time.Second
	deadAfter  = 3 * aliveEvery
)

// A node that carries a network for others says it more often (see Conn.Beat), so that a stand-by need not wait that long:
// after CarrierSilence it counts as gone, session or not.
const (
	CarrierBeat    = 2 * time.Second
	CarrierSilence = 5 * CarrierBeat
)

// A write that makes no progress for writeStall, or takes writeTotal in all, ends the Conn: the other end does not
// read. Progress is looked at every chunk bytes, so that a slow link may still carry a large message.
const (
	writeStall = 15 * time.Second
	writeTotal = 2 * time.Minute
	chunk      = 64 << 10
)

// refuseWait is how long Refuse waits for the other end to have read why.
const refuseWait = 2 * time.Second

// Conn is one end of a channel between a node and its coordinator. Send and Close may be called at any time from
// any goroutine, Recv from one. After any error the Conn is of no more use and must be closed.
//
// On the channel, a message is a length and then what [Encode] makes of it. A length of 0 says "still here".
//
//	 0               4     5
//	┌───────────────┬─────┬───────────────
//	│ length u32 BE │ tag │ CBOR value …     length = 1 + that of the value
//	└───────────────┴─────┴───────────────
type Conn struct {
	nc      net.Conn // TLS
	url     string
	machine key.MachinePublic
	control key.ControlPublic
	limit   uint32       // of one message to receive
	heard   atomic.Int64 // when anything came last, Unix ns

	wlock  chan struct{} // a mutex, held while writing; guards werr, timer and every
	werr   error         // ends writing for good
	timer  *time.Timer
	timers sync.WaitGroup // one while the timer is set or running
	every  time.Duration  // "still here"
	once   sync.Once
}

// newConn takes an established channel and starts to keep it alive.
func newConn(nc net.Conn, limit uint32) *Conn {
	c := &Conn{nc: nc, limit: limit, wlock: make(chan struct{}, 1), every: aliveEvery}
	c.heard.Store(time.Now().UnixNano())
	c.wlock <- struct{}{}
	defer c.unlock()
	c.timers.Add(1)
	c.timer = time.AfterFunc(aliveEvery, c.alive)
	return c
}

// Machine is the key the node has proven to hold.
func (c *Conn) Machine() key.MachinePublic { return c.machine }

// Control is the key the coordinator has proven to hold.
func (c *Conn) Control() key.ControlPublic { return c.control }

// URL is the one that Dial reached the coordinator by; empty at the coordinator's end.
func (c *Conn) URL() string { return c.url }

// RemoteAddr is the other end's address, or that of a proxy in between.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// Send writes one message: one of the message types of this package, or a pointer to it. It returns within
// two minutes, whatever the other end does.
func (c *Conn) Send(msg any) error {
	b, err := Encode(msg)
	if err != nil {
		return err
	}
	return c.SendEncoded(b)
}

// SendEncoded writes what Encode returned, which may thus be shared by many Conns.
func (c *Conn) SendEncoded(b []byte) error {
	if len(b) == 0 || len(b) > MaxMessage {
		return fmt.Errorf("wire: a message of %d bytes", len(b))
	}
	frame := make([]byte, 0, 4+len(b))
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(b)))
	return c.write(append(frame, b...))
}

func (c *Conn) unlock() { <-c.wlock }

func (c *Conn) write(b []byte) error {
	c.wlock <- struct{}{}
	defer c.unlock()
	return c.writeLocked(b)
}

func (c *Conn) writeLocked(b []byte) error {
	if c.werr != nil {
		return c.werr
	}
	end := time.Now().Add(writeTotal)
	for part := range slices.Chunk(b, chunk) {
		by := time.Now().Add(writeStall)
		if by.After(end) {
			by = end
		}
		c.nc.SetWriteDeadline(by)
		if _, err := c.nc.Write(part); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = errors.New("the other end does not read")
			}
			c.werr = fmt.Errorf("wire: send: %w", err)
			return c.werr
		}
	}
	return nil
}

// alive runs on the timer.
func (c *Conn) alive() {
	defer c.timers.Done()
	c.wlock <- struct{}{}
	defer c.unlock()
	if c.writeLocked([]byte{0, 0, 0, 0}) == nil { // else Recv, or the next Send, says so
		c.timers.Add(1)
		c.timer.Reset(c.every)
	}
}

// Beat says "still here" so often from now on, at most every 20 seconds; 0 is that.
func (c *Conn) Beat(every time.Duration) {
	if every <= 0 || every > aliveEvery {
		every = aliveEvery
	}
	c.wlock <- struct{}{}
	defer c.unlock()
	if c.every == every {
		return
	}
	c.every = every
	if c.timer.Stop() { // else alive is about to set it
		c.timer.Reset(every)
	}
}

// Heard is when anything came from the other end last, as far as Recv has seen it.
func (c *Conn) Heard() time.Time { return time.Unix(0, c.heard.Load()) }

// Recv returns a pointer to the next message. It waits for as long as the other end shows that it is there.
func (c *Conn) Recv() (any, error) {
	var head [4]byte
	for {
		c.nc.SetReadDeadline(time.Now().Add(deadAfter))
		if _, err := io.ReadFull(c.nc, head[:]); err != nil {
			return nil, recvError(err)
		}
		c.heard.Store(time.Now().UnixNano())
		n := binary.BigEndian.Uint32(head[:])
		if n == 0 {
			continue
		}
		if n > c.limit {
			return nil, fmt.Errorf("wire: a message of %d bytes is over the limit of %d", n, c.limit)
		}
		body, err := c.body(int(n))
		if err != nil {
			return nil, recvError(err)
		}
		return Decode(body)
	}
}

// body reads n bytes, and takes memory only as they come.
func (c *Conn) body(n int) ([]byte, error) {
	var b []byte
	for len(b) < n {
		part := min(chunk, n-len(b))
		b = slices.Grow(b, part)
		c.nc.SetReadDeadline(time.Now().Add(deadAfter))
		m, err := io.ReadFull(c.nc, b[len(b):len(b)+part])
		b = b[:len(b)+m]
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

func recvError(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("wire: the other end was silent for %v", deadAfter)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("wire: the channel was closed: %w", err)
	}
	return fmt.Errorf("wire: receive: %w", err)
}

// Refuse says why, and closes once the other end has heard it or two seconds have passed. To close at once would make
// TCP throw the reason away when something of the other end's is still unread. It must not run beside Recv.
func (c *Conn) Refuse(r *Refused) error {
	err := c.Send(r)
	if err == nil {
		c.nc.SetReadDeadline(time.Now().Add(refuseWait))
		io.Copy(io.Discard, io.LimitReader(c.nc, int64(c.limit)))
	}
	return errors.Join(err, c.Close())
}

// Close ends the channel and waits for everything it started. A Send or Recv under way returns an error.
func (c *Conn) Close() error {
	var err error
	c.once.Do(func() {
		err = c.nc.Close() // first: a write under way holds the lock
		c.wlock <- struct{}{}
		if c.werr == nil {
			c.werr = fmt.Errorf("wire: send: %w", net.ErrClosed)
		}
		if c.timer.Stop() {
			c.timers.Done()
		}
		c.unlock()
	})
	c.timers.Wait()
	return err
}

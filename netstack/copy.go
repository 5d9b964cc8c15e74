package netstack

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// What a copy moves at once. Each time takes a few handovers between goroutines, locks and a system call, and wakes
// whoever is at the other end, however much it is: a long one halves what small ones cost. So there are few long buffers
// for all copies, had only while there is something in them, and short ones for the rest.
//
//	host's socket ─ readable ─ buffer ─ read ─ write ─ buffer back ─▶ readable …
const (
	bulkSize  = 256 << 10
	bulkMost  = 64       // at once: 16 MB
	shortSize = 32 << 10 // bytes
)

var (
	bulkPool  = sync.Pool{New: func() any { return new([bulkSize]byte) }}
	shortPool = sync.Pool{New: func() any { return new([shortSize]byte) }}
	bulkUsed  atomic.Int32
)

// chunk is what a copy has while there is something to move. The zero one is none.
type chunk struct {
	bulk  *[bulkSize]byte
	short *[shortSize]byte
}

// take returns its bytes.
func (b *chunk) take() []byte {
	if bulkUsed.Add(1) <= bulkMost {
		b.bulk = bulkPool.Get().(*[bulkSize]byte)
		return b.bulk[:]
	}
	bulkUsed.Add(-1)
	b.short = shortPool.Get().(*[shortSize]byte)
	return b.short[:]
}

func (b *chunk) give() {
	if b.bulk != nil {
		bulkPool.Put(b.bulk)
		bulkUsed.Add(-1)
	}
	if b.short != nil {
		shortPool.Put(b.short)
	}
	*b = chunk{}
}

// WriteTo implements io.WriterTo: it copies what comes to w until the peer has sent all.
func (c *tcpConn) WriteTo(w io.Writer) (total int64, err error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	for {
		n, err := c.pass(w)
		total += int64(n)
		switch {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		case n > 0:
			continue
		}
		if err := c.in.wait(); err != nil {
			return total, c.fail("read", err)
		}
	}
}

// pass writes to w what there is to read. The caller holds in.mu.
func (c *tcpConn) pass(w io.Writer) (int, error) {
	var buf chunk
	b := buf.take()
	defer buf.give()
	n, err := c.tryRead(b)
	if n == 0 || err != nil {
		return 0, err
	}
	m, err := w.Write(b[:n])
	if err == nil && m < n {
		err = io.ErrShortWrite
	}
	return m, err
}

// ReadFrom implements io.ReaderFrom: it copies what r has until its end.
func (c *tcpConn) ReadFrom(r io.Reader) (total int64, err error) {
	next := reads(r)
	for {
		var buf chunk
		b, err := next(&buf)
		if len(b) > 0 {
			n, werr := c.Write(b)
			total += int64(n)
			if werr != nil {
				err = werr
			}
		}
		buf.give()
		switch err {
		case nil:
		case io.EOF:
			return total, nil
		default:
			return total, err
		}
	}
}

// reads returns what waits for r to have something, and reads it. A socket of the host's is asked for it before there
// is a buffer; others have a short one while they wait.
func reads(r io.Reader) func(*chunk) ([]byte, error) {
	if next := socket(r); next != nil {
		return next
	}
	return func(buf *chunk) ([]byte, error) {
		buf.short = shortPool.Get().(*[shortSize]byte)
		n, err := r.Read(buf.short[:])
		return buf.short[:n], err
	}
}

var (
	_ net.Conn      = (*tcpConn)(nil)
	_ io.WriterTo   = (*tcpConn)(nil)
	_ io.ReaderFrom = (*tcpConn)(nil)
)

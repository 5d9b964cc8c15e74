package bind

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv6"
	"golang.zx2c4.com/wireguard/conn"
)

// batcher moves many datagrams at once. Messages have one buffer each.
type batcher interface {
	ReadBatch(ms []ipv6.Message, flags int) (int, error)
	WriteBatch(ms []ipv6.Message, flags int) (int, error)
}

// udp is a UDP socket that can be exchanged while others read and write it.
type udp struct {
	network string // udp4 or udp6
	cur     atomic.Pointer[sock]
}

// sock is one system socket.
type sock struct {
	pc    net.PacketConn
	batch batcher
	port  uint16
}

// single is the batcher of whatever net.PacketConn: one at a time.
type single struct{ pc net.PacketConn }

func (s single) ReadBatch(ms []ipv6.Message, _ int) (n int, err error) {
	ms[0].N, ms[0].Addr, err = s.pc.ReadFrom(ms[0].Buffers[0])
	if err != nil {
		return 0, err
	}
	return 1, nil
}

func (s single) WriteBatch(ms []ipv6.Message, _ int) (n int, err error) {
	for i := range ms {
		if _, err := s.pc.WriteTo(ms[i].Buffers[0], ms[i].Addr); err != nil {
			return i, err
		}
	}
	return len(ms), nil
}

// listen opens both sockets on one port. A family this machine does not have is left out.
func (b *Bind) listen(port uint16) (s4, s6 *sock, err error) {
	for range 20 {
		var e4, e6 error
		s4, e4 = b.listenOne("udp4", port)
		want := port
		if s4 != nil {
			want = s4.port
		}
		s6, e6 = b.listenOne("udp6", want)
		switch {
		case e4 == nil && errors.Is(e6, syscall.EADDRINUSE) && port == 0:
			s4.pc.Close() // another's, by chance: try another
			continue
		case errors.Is(e4, syscall.EADDRINUSE) || errors.Is(e6, syscall.EADDRINUSE):
			err = fmt.Errorf("bind: UDP port %d is in use; stop the other program, or let the system choose with port 0", port)
		case s4 == nil && s6 == nil:
			err = fmt.Errorf("bind: cannot open a UDP socket: %w", errors.Join(e4, e6))
		}
		if err != nil {
			for _, s := range []*sock{s4, s6} {
				if s != nil {
					s.pc.Close()
				}
			}
			return nil, nil, err
		}
		return s4, s6, nil
	}
	return nil, nil, errors.New("bind: no UDP port is free for both IPv4 and IPv6")
}

func (b *Bind) listenOne(network string, port uint16) (*sock, error) {
	pc, err := b.cfg.Listen(context.Background(), network, fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	a, ok := pc.LocalAddr().(*net.UDPAddr)
	if !ok {
		pc.Close()
		return nil, fmt.Errorf("bind: %s socket has address %v", network, pc.LocalAddr())
	}
	return &sock{pc, newBatcher(network, pc), uint16(a.Port)}, nil
}

func (b *Bind) listenSystem(ctx context.Context, network, address string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		tune(c)
		return b.markConn("", "", c)
	}}
	return lc.ListenPacket(ctx, network, address)
}

// markConn puts the device's firewall mark on a new socket.
func (b *Bind) markConn(_, _ string, c syscall.RawConn) error {
	if m := b.mark.Load(); m != 0 {
		return setMark(c, m)
	}
	return nil
}

// messages is scratch for one batch, with the address it goes to.
type messages struct {
	ms []ipv6.Message
	to net.UDPAddr
	ip [16]byte
}

var messagePool = sync.Pool{New: func() any {
	m := &messages{ms: make([]ipv6.Message, conn.IdealBatchSize)}
	for i := range m.ms {
		m.ms[i].Buffers = make([][]byte, 1)
	}
	return m
}}

// write sends packets to an address.
func (u *udp) write(bufs [][]byte, to netip.AddrPort) error {
	s := u.cur.Load()
	if s == nil {
		return fmt.Errorf("bind: no %s socket: %w", u.network, syscall.EAFNOSUPPORT)
	}
	m := messagePool.Get().(*messages)
	defer messagePool.Put(m)
	if u.network == "udp4" {
		ip := to.Addr().As4()
		m.to.IP = m.ip[:copy(m.ip[:], ip[:])]
	} else {
		m.ip = to.Addr().As16()
		m.to.IP = m.ip[:]
	}
	m.to.Port = int(to.Port())
	for len(bufs) > 0 {
		n := min(len(bufs), len(m.ms))
		for i, b := range bufs[:n] {
			m.ms[i].Buffers[0], m.ms[i].Addr = b, &m.to
		}
		bufs = bufs[n:]
		for ms := m.ms[:n]; len(ms) > 0; {
			k, err := s.batch.WriteBatch(ms, 0)
			if err != nil {
				return err
			}
			ms = ms[k:]
		}
	}
	return nil
}

// read waits for datagrams until the session is closed. It mends what it can: any error but net.ErrClosed would end
// the device's receiver for good.
func (u *udp) read(ses *session, ms []ipv6.Message) (int, error) {
	for bad := 0; ; {
		if ses.closed() {
			return 0, net.ErrClosed
		}
		s := u.cur.Load()
		n, err := s.batch.ReadBatch(ms, 0)
		if err == nil && n > 0 {
			return n, nil
		}
		switch {
		case ses.closed():
			return 0, net.ErrClosed
		case u.cur.Load() != s || errors.Is(err, os.ErrDeadlineExceeded):
			continue // exchanged, or woken for a Close that another Open overtook
		}
		// Something passing, such as an ICMP error (Windows) or a lack of memory.
		if bad++; bad < 10 {
			continue
		}
		t := time.NewTimer(min(time.Duration(bad)*time.Millisecond, time.Second))
		select {
		case <-ses.done:
		case <-t.C:
		}
		t.Stop()
	}
}

// session is the time between the device's Open and Close.
type session struct{ done chan struct{} }

func (s *session) closed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

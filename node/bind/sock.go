package bind

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hedge-mesh/hedge/node/sentry"
	"github.com/hedge-mesh/hedge/node/udp"
)

// family is the socket of IPv4 or IPv6, which can be exchanged while others read and write it.
type family struct {
	network string // udp4 or udp6
	cur     atomic.Pointer[sock]
	watched atomic.Bool // see Bind.Watch
}

// sock is one system socket.
type sock struct {
	*udp.Socket
	reader *udp.Reader // nil if datagrams are read one by one
	port   uint16
	sparse *sock          // for flows that send little, on the same port; nil where there can be none
	peek   *udp.Reader    // a companion's, for the reader of the socket beside it, that polls
	sentry *sentry.Sentry // a companion's; nil where there can be none
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
			s4.Close() // another's, by chance: try another
			continue
		case errors.Is(e4, syscall.EADDRINUSE) || errors.Is(e6, syscall.EADDRINUSE):
			err = fmt.Errorf("bind: UDP port %d is in use; stop the other program, or let the system choose with port 0", port)
		case s4 == nil && s6 == nil:
			err = fmt.Errorf("bind: cannot open a UDP socket: %w", errors.Join(e4, e6))
		}
		if err != nil {
			for _, s := range []*sock{s4, s6} {
				if s != nil {
					s.Close()
				}
			}
			return nil, nil, err
		}
		for i, f := range []*family{&b.udp4, &b.udp6} {
			if s := []*sock{s4, s6}[i]; s != nil {
				s.reader = s.Reader()
				b.companion(f, s)
			}
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
	return &sock{Socket: udp.New(pc), port: uint16(a.Port)}, nil
}

func (b *Bind) listenSystem(ctx context.Context, network, address string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: b.control}
	if b.cfg.Loopback {
		address = map[string]string{"udp4": "127.0.0.1", "udp6": "[::1]"}[network] + address
	}
	return lc.ListenPacket(ctx, network, address)
}

// control sets up a new socket.
func (b *Bind) control(network, address string, c syscall.RawConn) error {
	udp.DontFragment(c)
	return b.markConn(network, address, c)
}

// markConn puts the device's firewall mark on a new socket.
func (b *Bind) markConn(_, _ string, c syscall.RawConn) error {
	if m := b.mark.Load(); m != 0 {
		return udp.Mark(c, m)
	}
	return nil
}

// Rest gives back the memory that transfers have left with the sockets, as far as nothing comes by them now.
func (b *Bind) Rest() {
	for _, f := range []*family{&b.udp4, &b.udp6} {
		for s := f.cur.Load(); s != nil; s = s.sparse {
			for _, r := range []*udp.Reader{s.reader, s.peek} {
				if r != nil {
					r.Rest()
				}
			}
		}
	}
}

// write sends packets to an address.
func (f *family) write(bufs [][]byte, to netip.AddrPort) error {
	s := f.cur.Load()
	if s == nil {
		return fmt.Errorf("bind: no %s socket: %w", f.network, syscall.EAFNOSUPPORT)
	}
	if s.sparse == nil {
		return s.Write(bufs, to)
	}
	sparse, rest := divideSparse(bufs)
	var err error
	if len(sparse) > 0 {
		err = s.sparse.Write(sparse, to)
	}
	if len(rest) > 0 { // also when one of the others was too long
		if e := s.Write(rest, to); err == nil {
			err = e
		}
	}
	return err
}

// read waits for datagrams until the session is closed. It mends what it can: any error but net.ErrClosed would end
// the device's receiver for good.
func (f *family) read(sparse bool, ses *session, bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	for bad := 0; ; {
		if ses.closed() {
			return 0, net.ErrClosed
		}
		s := f.cur.Load()
		n, err := 0, error(syscall.EAFNOSUPPORT)
		if !sparse {
			n, err = s.reader.Lend(bufs, sizes, from)
		} else if s.sparse != nil && s.sparse.sentry != nil && f.watched.Load() {
			n, err = s.sparse.watch(bufs, sizes, from)
		} else if s.sparse != nil {
			n, err = s.sparse.reader.Lend(bufs, sizes, from)
		}
		if err == nil && n > 0 {
			return n, nil
		}
		switch {
		case ses.closed():
			return 0, net.ErrClosed
		case err == nil || f.cur.Load() != s || errors.Is(err, os.ErrDeadlineExceeded):
			continue // nothing came, exchanged, or woken for a Close that another Open overtook
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

// isClosed reports whether a socket is gone.
func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }

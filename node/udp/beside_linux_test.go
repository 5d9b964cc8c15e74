package udp

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func noControl(string, string, syscall.RawConn) error { return nil }

// What comes marked is read by the second socket, everything else by the first, and answers of both come from one port.
func TestBeside(t *testing.T) {
	for _, c := range []struct{ network, address string }{{"udp4", "127.0.0.1:0"}, {"udp6", "[::1]:0"}, {"udp4", ":0"}, {"udp6", ":0"}} {
		t.Run(c.network+c.address, func(t *testing.T) {
			first, at := listen(t, c.network, c.address, nil)
			second, err := first.Beside(noControl)
			if err != nil {
				t.Fatal(err)
			}
			defer second.Close()
			if at.Addr().IsUnspecified() {
				lo := map[string]netip.Addr{"udp4": netip.MustParseAddr("127.0.0.1"), "udp6": netip.IPv6Loopback()}[c.network]
				at = netip.AddrPortFrom(lo, at.Port())
			}
			peer, _ := listen(t, c.network, map[string]string{"udp4": "127.0.0.1:0", "udp6": "[::1]:0"}[c.network], nil)
			send := func(tos int, n int) {
				control(t, peer, func(fd int) error {
					if c.network == "udp4" {
						return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, tos)
					}
					return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
				})
				out := buffers(n, 100)
				if err := peer.Write(out, at); err != nil {
					t.Fatal(err)
				}
			}
			send(nqb, 20)
			send(0, 30)
			send(nqb|2, 1) // with a mark of ECN
			send(46<<2, 2) // of another kind
			if n := len(take(t, second, 21)); n != 21 {
				t.Errorf("%d came by the second", n)
			}
			if n := len(take(t, first, 32)); n != 32 {
				t.Errorf("%d came by the first", n)
			}
			back := peer.LocalAddr().(*net.UDPAddr).AddrPort()
			for _, s := range []*Socket{first, second} {
				if err := s.Write([][]byte{[]byte("back")}, back); err != nil {
					t.Fatal(err)
				}
				peer.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, from, err := peer.ReadOne(make([]byte, 100)); err != nil || from != at {
					t.Errorf("an answer from %v, want %v; %v", from, at, err)
				}
			}
			if third, err := net.ListenPacket(c.network, at.String()); err == nil {
				third.Close()
				t.Error("somebody else could have the port")
			}
		})
	}
}

// A second socket comes with what is asked for, or not at all, and the first is as before.
func TestBesideFails(t *testing.T) {
	first, at := listen(t, "udp4", "127.0.0.1:0", nil)
	if _, err := first.Beside(func(string, string, syscall.RawConn) error { return syscall.EPERM }); err == nil {
		t.Error("there is one that could not be set up")
	}
	if err := first.Write([][]byte{[]byte("self")}, at); err != nil {
		t.Fatal(err)
	}
	if n := take(t, first, 1); len(n) != 1 {
		t.Error("the first receives no more")
	}
}

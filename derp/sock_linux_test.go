package derp

import (
	"context"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSegmentsFitAnyPath: whichever end is asked to, both send segments for packets of 1280 bytes.
func TestSegmentsFitAnyPath(t *testing.T) {
	for _, c := range []struct {
		name           string
		client, server bool
	}{{"client", true, false}, {"server", false, true}, {"both", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			var d net.Dialer
			if c.server {
				lc.Control = LimitSegments
			}
			if c.client {
				d.Control = LimitSegments
			}
			ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			a, err := d.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			b, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			for name, c := range map[string]net.Conn{"client": a, "server": b} {
				rc, err := c.(syscall.Conn).SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				rc.Control(func(fd uintptr) {
					info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
					if err != nil {
						t.Error(err)
					} else if info.Snd_mss > maxSegment {
						t.Errorf("the %s sends segments of %d bytes, want %d at most", name, info.Snd_mss, maxSegment)
					}
				})
			}
		})
	}
}

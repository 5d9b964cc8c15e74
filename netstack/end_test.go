package netstack

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// A connection is ended at once, whatever its other end has sent or lost; others of the same ports are not, nor who listens.
func TestEnd(t *testing.T) {
	families(t, func(t *testing.T, at, bt netip.Addr) {
		a, b := pair(t, Options{}, Options{}, nil)
		l, err := b.ListenTCP(port(bt, 80))
		if err != nil {
			t.Fatal(err)
		}
		dial := func() (out, in net.Conn) {
			t.Helper()
			if out, err = a.DialContext(timeout(t), "tcp", port(bt, 80)); err != nil {
				t.Fatal(err)
			}
			if in, err = l.Accept(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { out.Close(); in.Close() })
			return out, in
		}
		out, in := dial()
		other, otherIn := dial()
		local := in.RemoteAddr().(*net.TCPAddr).AddrPort()
		nobody := netip.AddrPortFrom(at, local.Port()^1<<15)
		for _, none := range [][2]netip.AddrPort{
			{nobody, port(bt, 80)}, {local, port(bt, 81)}, {port(bt, 80), local}, {port(bt, 80), port(bt, 80)},
		} {
			if a.End(none[0], none[1]) {
				t.Errorf("a had %v", none)
			}
		}
		if b.End(port(bt, 80), nobody) {
			t.Error("who listens was ended")
		}
		if !a.End(local, port(bt, 80)) {
			t.Fatal("a does not know its connection")
		}
		out.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := out.Read(make([]byte, 1)); err == nil || err == io.EOF || err.(net.Error).Timeout() {
			t.Errorf("read: %v", err)
		}
		if _, err := out.Write(make([]byte, 1)); err == nil {
			t.Error("it can still be written to")
		}
		if a.End(local, port(bt, 80)) {
			t.Error("it was there to be ended again")
		}
		go other.Write([]byte("x"))
		if _, err := otherIn.Read(make([]byte, 1)); err != nil {
			t.Errorf("another connection: %v", err)
		}
		dial() // still listens
		a.Close()
		if a.End(local, port(bt, 80)) {
			t.Error("it was there after Close")
		}
	})
}

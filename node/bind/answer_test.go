package bind

import (
	"net"
	"testing"

	"github.com/pion/stun/v3"
)

// Whatever a STUN server answers is an address that can be one, with the number of the question, or nothing.
func FuzzAnswer(f *testing.F) {
	for _, ip := range []net.IP{net.IPv4(203, 0, 113, 5).To4(), net.ParseIP("2001:db8::5"), net.ParseIP("::ffff:1.2.3.4")} {
		f.Add(stun.MustBuild(stun.TransactionID, stun.BindingSuccess, &stun.XORMappedAddress{IP: ip, Port: 41641}).Raw)
	}
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingError).Raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		mapped, id, ok := readAnswer(b)
		if !ok {
			return
		}
		if !mapped.IsValid() || mapped.Port() == 0 || mapped.Addr().Is4In6() || mapped.Addr().Zone() != "" {
			t.Fatalf("%v of %x", mapped, b)
		}
		if len(b) < 20 || string(b[8:20]) != string(id[:]) || b[0]&0x3f != 1 || b[1] != 1 { // the library leaves the first two bits aside
			t.Fatalf("%x is no answer to %x", b, id)
		}
	})
}

package node

import (
	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/node/device"
)

// screened is the Bind that the WireGuard device has: what it receives by it has been looked at.
//
//	device ◀── handshakes that screen lets through, batches as long as company allows ── bind's receivers
type screened struct {
	conn.Bind
	screen  func(pkt []byte, ep conn.Endpoint) (conn.Endpoint, bool) // false: the device is not to have it
	company *company
}

// Lends implements device.Lender.
func (b *screened) Lends() bool {
	l, ok := b.Bind.(device.Lender)
	return ok && l.Lends()
}

// Open implements conn.Bind.
func (b *screened) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := b.Bind.Open(port)
	for i, fn := range fns {
		fns[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			most := b.company.batch(len(bufs))
			n, err := fn(bufs[:most], sizes[:most], eps[:most])
			for j := range n {
				if ep, ok := b.screen(bufs[j][:sizes[j]], eps[j]); ok {
					eps[j] = ep
				} else {
					sizes[j] = 0
				}
			}
			return n, err
		}
	}
	return fns, port, err
}

//go:build !linux

package derp

import "net/netip"

func (s *udpsock) tune() {
	_ = s.udp.SetReadBuffer(1 << 20) // best effort
	_ = s.udp.SetWriteBuffer(1 << 20)
}

func runSize([]byte) int { return 0 }

func (s *udpsock) writeRun([]byte, int, netip.AddrPort) error { return nil } // gso is never set

func refusesRuns(error) (now, ever bool) { return false, false }

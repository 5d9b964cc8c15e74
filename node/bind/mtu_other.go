//go:build !linux

package bind

import "net/netip"

// systemMTU is nil: packets are fragmented as the system likes.
func systemMTU() func(netip.AddrPort) int { return nil }

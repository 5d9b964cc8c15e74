package ostun

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// vnet is the header before each packet that the kernel and we exchange (struct virtio_net_hdr of linux/virtio_net.h, in
// the byte order of the machine). With it one packet stands for many, and its checksum may be left for later:
//
//	 0       1       2               4               6               8              10
//	┌───────┬───────┬───────────────┬───────────────┬───────────────┬───────────────┐
//	│ flags │ gso   │ header bytes  │ payload bytes │ checksum from │ checksum at   │ IP │ TCP or UDP │ payload…
//	│       │ type  │ of a segment  │ of a segment  │ this byte of  │ this one from │
//	│       │       │               │               │ the packet    │ there         │
//	└───────┴───────┴───────────────┴───────────────┴───────────────┴───────────────┘
//
// flags are VIRTIO_NET_HDR_F_NEEDS_CSUM (the field holds the pseudo header's sum only) or none.
type vnet struct {
	flags, gso          uint8
	header, segment     uint16
	sumFrom, sumAtField uint16
}

const vnetLen = 10

var errShort = errors.New("ostun: shorter than a virtio_net_hdr")

func (v *vnet) decode(b []byte) error {
	if len(b) < vnetLen {
		return errShort
	}
	o := binary.NativeEndian
	*v = vnet{b[0], b[1], o.Uint16(b[2:]), o.Uint16(b[4:]), o.Uint16(b[6:]), o.Uint16(b[8:])}
	return nil
}

// encode writes the header to b, which has room for it.
func (v vnet) encode(b []byte) {
	_ = b[vnetLen-1]
	o := binary.NativeEndian
	b[0], b[1] = v.flags, v.gso
	o.PutUint16(b[2:], v.header)
	o.PutUint16(b[4:], v.segment)
	o.PutUint16(b[6:], v.sumFrom)
	o.PutUint16(b[8:], v.sumAtField)
}

// What both directions need to know of packets.
const (
	ip4Len, ip6Len = 20, 40 // IPv6 without extension headers
	tcpLen, udpLen = 20, 8  // TCP without options
	tcpSum, udpSum = 16, 6  // where their checksum is
	tcpFlags       = 13
	maxPacket      = 65535 // what an IPv4 header can say

	fin, psh, ack, cwr = 0x01, 0x08, 0x10, 0x80

	needsSum = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	gsoNone  = unix.VIRTIO_NET_HDR_GSO_NONE
	gsoTCP4  = unix.VIRTIO_NET_HDR_GSO_TCPV4
	gsoTCP6  = unix.VIRTIO_NET_HDR_GSO_TCPV6
	gsoUDP   = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	gsoECN   = unix.VIRTIO_NET_HDR_GSO_ECN // beside TCP's: CWR on the first segment only
)

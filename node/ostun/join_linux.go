package ostun

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// joiner makes one packet of neighbours in a batch that follow each other, for one writev, in which nothing is copied.
// The kernel then routes, acknowledges and wakes a reader once for all of them:
//
//	   IP │ TCP │ a    IP │ TCP │ b    IP │ TCP │ c       same flow, acknowledgement, window and options
//	        ▼                 ▼                 ▼
//	vnet │ IP │ TCP │ a,      b,                c         one iovec for each
//
// Only neighbours are joined, so nothing overtakes anything, and nothing waits for a later batch. Datagrams are joined
// if all have one size, the last at most that.
//
// Checksums are verified here, and by the kernel no more: WireGuard has authenticated the peer, but not what a host
// behind it sent and it forwards. What is wrong goes on as it is, alone, and is the kernel's to count.
type joiner struct {
	mtu int  // of the interface: no segment is said to be longer
	uso bool // the kernel takes joined datagrams
	out [][]byte
}

// maxDatagrams is how many the kernel takes as one (UDP_MAX_SEGMENTS; 128 since Linux 6.9).
const maxDatagrams = 64

// run is what is found at the start of a batch.
type run struct {
	n     int  // packets; 0: the first is not for joining
	proto byte // of all
	ip    int  // bytes of the IP header
	hdr   int  // and of that and the TCP or UDP header
	size  int  // bytes of the joined packet
	most  int  // bytes of the longest payload
}

// next returns what is to be written of the start of a batch, whose packets start at offset, and how many packets that
// is. It writes to the first of them, and before it.
func (j *joiner) next(bufs [][]byte, offset int) (n int, iov [][]byte) {
	first := bufs[0]
	r := j.find(bufs, offset)
	j.out = append(j.out[:0], first[offset-vnetLen:])
	if r.n == 0 {
		vnet{}.encode(first[offset-vnetLen:])
		return 1, j.out
	}
	for _, b := range bufs[1:r.n] {
		j.out = append(j.out, b[offset+r.hdr:])
		if r.proto == unix.IPPROTO_TCP {
			first[offset+r.ip+tcpFlags] |= b[offset+r.ip+tcpFlags] & psh
		}
	}
	j.head(first, offset, r)
	return r.n, j.out
}

// head makes the headers of the first packet those of the joined one.
func (j *joiner) head(b []byte, offset int, r run) {
	p := b[offset:]
	six := p[0]>>4 == 6
	v := vnet{flags: needsSum, header: uint16(r.hdr), sumFrom: uint16(r.ip), sumAtField: udpSum}
	segment := min(r.most, j.mtu-r.hdr)
	switch {
	case r.proto == unix.IPPROTO_UDP:
		if r.n > 1 {
			v.gso, v.segment = gsoUDP, uint16(r.most)
		}
		binary.BigEndian.PutUint16(p[r.ip+4:], uint16(r.size-r.ip))
	default:
		v.sumAtField = tcpSum
		if r.size-r.hdr > segment && segment > 0 {
			v.gso, v.segment = gsoTCP4, uint16(segment)
			if six {
				v.gso = gsoTCP6
			}
		}
	}
	if six {
		binary.BigEndian.PutUint16(p[4:], uint16(r.size-ip6Len))
	} else {
		binary.BigEndian.PutUint16(p[2:], uint16(r.size))
		sumIP4(p[:r.ip])
	}
	binary.BigEndian.PutUint16(p[r.ip+int(v.sumAtField):], pseudo(p, r.proto, r.size-r.ip))
	v.encode(b[offset-vnetLen:])
}

// find looks for a run.
func (j *joiner) find(bufs [][]byte, offset int) run {
	first := bufs[0][offset:]
	proto, ip, hdr := j.payload(first)
	if hdr == 0 {
		return run{}
	}
	size := len(first) - hdr
	r := run{n: 1, proto: proto, ip: ip, hdr: hdr, size: len(first), most: size}
	for _, b := range bufs[1:] {
		if len(b) <= offset+hdr {
			break
		}
		p := b[offset:]
		size := len(p) - hdr
		if r.size+size > maxPacket || !sameIP(first, p) {
			break
		}
		if proto == unix.IPPROTO_TCP {
			if !followsTCP(first[ip:hdr], p[ip:hdr], r.size-hdr) {
				break
			}
		} else if r.n == maxDatagrams || !bytes.Equal(first[ip:ip+4], p[ip:ip+4]) || size > r.most || r.size != hdr+r.n*r.most {
			break
		}
		if _, _, h := j.payload(p); h != hdr {
			break
		}
		r.n++
		r.size += size
		r.most = max(r.most, size)
	}
	return r
}

// payload returns the length of the IP header, and of that and the TCP or UDP header, of a packet that may be joined:
// unfragmented, without IP options, with payload, with no TCP flag but ACK and PSH, and with right checksums. Else all
// are 0.
func (j *joiner) payload(p []byte) (proto byte, ip, hdr int) {
	switch {
	case len(p) > ip4Len && p[0] == 0x45:
		if int(binary.BigEndian.Uint16(p[2:])) != len(p) || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 || checksum.Checksum(p[:ip4Len], 0) != 0xffff {
			return 0, 0, 0
		}
		proto, ip = p[9], ip4Len
	case len(p) > ip6Len && p[0]>>4 == 6:
		if int(binary.BigEndian.Uint16(p[4:])) != len(p)-ip6Len {
			return 0, 0, 0
		}
		proto, ip = p[6], ip6Len
	default:
		return 0, 0, 0
	}
	h := p[ip:]
	switch {
	case proto == unix.IPPROTO_TCP && len(h) > tcpLen:
		hdr = ip + int(h[12]>>4)*4
		if hdr < ip+tcpLen || h[tcpFlags]|psh != ack|psh {
			return 0, 0, 0
		}
	case proto == unix.IPPROTO_UDP && len(h) > udpLen && j.uso:
		hdr = ip + udpLen
		if int(binary.BigEndian.Uint16(h[4:])) != len(h) || h[udpSum] == 0 && h[udpSum+1] == 0 {
			return 0, 0, 0
		}
	default:
		return 0, 0, 0
	}
	if hdr >= len(p) || len(p) > maxPacket || checksum.Checksum(h, pseudo(p, proto, len(h))) != 0xffff {
		return 0, 0, 0
	}
	return proto, ip, hdr
}

// sameIP reports whether the IP headers differ in nothing but length, IPv4 identification and checksum. Both are as
// long as p's is to be.
func sameIP(first, p []byte) bool {
	if first[0]>>4 == 4 {
		return bytes.Equal(first[:2], p[:2]) && bytes.Equal(first[6:10], p[6:10]) && bytes.Equal(first[12:20], p[12:20])
	}
	return bytes.Equal(first[:4], p[:4]) && bytes.Equal(first[6:40], p[6:40])
}

// followsTCP reports whether header b, as long as a, continues a, after which there are so many bytes of payload, and
// differs in nothing else but checksum and PSH.
func followsTCP(a, b []byte, payload int) bool {
	return binary.BigEndian.Uint32(b[4:]) == binary.BigEndian.Uint32(a[4:])+uint32(payload) &&
		bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[8:13], b[8:13]) &&
		(a[tcpFlags]^b[tcpFlags])&^psh == 0 && bytes.Equal(a[14:16], b[14:16]) && bytes.Equal(a[18:], b[18:])
}

// pseudo is the checksum of the pseudo header of a packet's payload of n bytes (RFC 9293 section 3.1).
func pseudo(p []byte, proto byte, n int) uint16 {
	src, dst := ends(p)
	return checksum.Checksum(dst, checksum.Checksum(src, checksum.Combine(uint16(proto), uint16(n))))
}

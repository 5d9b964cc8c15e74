package portmap

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// A PCP MAP request and its answer (RFC 6887 sections 7.1, 7.2 and 11.1), 60 bytes each, without options:
//
//	 0             1             2             3
//	┌─────────────┬─┬───────────┬─────────────┬─────────────┐
//	│ version = 2 │R│ opcode = 1│ reserved    │ result      │  R is 1 in an answer; result is 0 for success
//	├─────────────┴─┴───────────┴─────────────┴─────────────┤
//	│ lifetime, seconds                                     │
//	├───────────────────────────────────────────────────────┤
//	│ request: the client's address, 16 bytes               │
//	│ answer:  epoch, 4 bytes, and 12 reserved              │
//	├───────────────────────────────────────────────────────┤
//	│ nonce, 12 bytes                                       │
//	├─────────────┬─────────────────────────────────────────┤
//	│ protocol 17 │ reserved                                │
//	├─────────────┴─────────────┬───────────────────────────┤
//	│ internal port             │ external port             │
//	├───────────────────────────┴───────────────────────────┤
//	│ external address, 16 bytes; IPv4 as ::ffff:a.b.c.d    │
//	└───────────────────────────────────────────────────────┘
const (
	pcpVersion = 2
	pcpMap     = 1
	pcpSize    = 60
	pcpMax     = 1100 // of any message (section 7)
	protoUDP   = 17
)

type pcpNonce [12]byte

// pcp asks by the Port Control Protocol. It keeps the nonce of its mapping: the gateway knows us by it.
type pcp struct {
	nonce pcpNonce
	port  uint16 // 5351
}

func (*pcp) kind() Protocol { return PCP }

func appendPCP(b []byte, self netip.Addr, nonce pcpNonce, internal, external uint16, lifetime time.Duration) []byte {
	addr := self.As16()
	b = append(b, pcpVersion, pcpMap, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(lifetime/time.Second))
	b = append(b, addr[:]...)
	b = append(b, nonce[:]...)
	b = append(b, protoUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, internal)
	b = binary.BigEndian.AppendUint16(b, external)
	var whatever [16]byte // any address of the same family will do (section 11.1)
	if self.Is4() {
		whatever[10], whatever[11] = 0xff, 0xff
	}
	return append(b, whatever[:]...)
}

var errPCPShort = errors.New("the answer is no PCP answer")

// parsePCP reads an answer to our request. An answer to another is an error that is errors.Is errNotOurs.
func parsePCP(b []byte, nonce pcpNonce, internal uint16) (netip.AddrPort, time.Duration, error) {
	var none netip.AddrPort
	if len(b) < 4 || len(b) > pcpMax || b[0] != pcpVersion && b[0] != 0 || b[1]&0x80 == 0 {
		return none, 0, errPCPShort
	}
	if b[0] != pcpVersion || b[3] == 1 {
		return none, 0, errors.New("the gateway does not speak PCP version 2")
	}
	if b[1] != 0x80|pcpMap || len(b) < pcpSize {
		return none, 0, errPCPShort
	}
	if pcpNonce(b[24:36]) != nonce || b[36] != protoUDP || binary.BigEndian.Uint16(b[40:]) != internal {
		return none, 0, errNotOurs
	}
	if b[3] != 0 {
		return none, 0, fmt.Errorf("the gateway refused: %s", pcpResult(b[3]))
	}
	ext := netip.AddrFrom16([16]byte(b[44:60])).Unmap()
	return netip.AddrPortFrom(ext, binary.BigEndian.Uint16(b[42:])), time.Duration(binary.BigEndian.Uint32(b[4:])) * time.Second, nil
}

var errNotOurs = errors.New("an answer to somebody else's request")

// pcpResult is a result code in words (RFC 6887 section 7.4).
func pcpResult(code byte) string {
	names := [...]string{2: "not authorized", 3: "malformed request", 4: "unsupported opcode", 5: "unsupported option", 6: "malformed option",
		7: "network failure", 8: "no resources", 9: "unsupported protocol", 10: "quota exceeded", 11: "cannot provide the external port",
		12: "address mismatch: there is a NAT between us and it", 13: "excessive remote peers"}
	if int(code) < len(names) && names[code] != "" {
		return names[code]
	}
	return fmt.Sprintf("result %d", code)
}

func (p *pcp) mapPort(ctx context.Context, gw Gateway, port, external uint16, lifetime time.Duration) (at netip.AddrPort, lease time.Duration, err error) {
	if p.nonce == (pcpNonce{}) {
		rand.Read(p.nonce[:]) // never fails
	}
	req := appendPCP(nil, gw.Self, p.nonce, port, external, lifetime)
	err = exchange(ctx, gw, p.port, req, func(b []byte) (err error) {
		at, lease, err = parsePCP(b, p.nonce, port)
		return err
	})
	return at, lease, err
}

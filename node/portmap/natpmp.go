package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// NAT-PMP's two questions and their answers (RFC 6886 sections 3.2 and 3.3):
//
//	address  ┌────┬────┐                     ┌────┬─────┬────────┬───────────┬──────────────────┐
//	         │ 00 │ 00 │               ───▶  │ 00 │ 80  │ result │ epoch, 4 B│ external IPv4    │
//	         └────┴────┘                     └────┴─────┴────────┴───────────┴──────────────────┘
//	map UDP  ┌────┬────┬──────┬──────────┬──────────┬─────────────┐
//	         │ 00 │ 01 │ 0000 │ internal │ external │ lifetime, s │
//	         └────┴────┴──────┴──────────┴──────────┴─────────────┘
//	   ───▶  ┌────┬────┬────────┬───────────┬──────────┬──────────┬─────────────┐
//	         │ 00 │ 81 │ result │ epoch, 4 B│ internal │ external │ lifetime, s │
//	         └────┴────┴────────┴───────────┴──────────┴──────────┴─────────────┘
//
// The libraries there are cannot be told to stop waiting.
type natpmp struct {
	port uint16 // 5351
}

const (
	pmpAddress = 0
	pmpMapUDP  = 1
)

func (natpmp) kind() Protocol { return NATPMP }

var errPMPShort = errors.New("the answer is no NAT-PMP answer")

// parsePMP returns what follows the epoch in an answer.
func parsePMP(b []byte, op byte, size int) ([]byte, error) {
	if len(b) < 4 || b[1]&0x80 == 0 {
		return nil, errPMPShort
	}
	if b[0] != 0 {
		return nil, errors.New("the gateway does not speak NAT-PMP")
	}
	if b[1] != 0x80|op {
		return nil, errNotOurs
	}
	if code := binary.BigEndian.Uint16(b[2:]); code != 0 {
		names := [...]string{1: "unsupported version", 2: "not authorized", 3: "network failure", 4: "out of resources", 5: "unsupported opcode"}
		if int(code) < len(names) {
			return nil, fmt.Errorf("the gateway refused: %s", names[code])
		}
		return nil, fmt.Errorf("the gateway refused: result %d", code)
	}
	if len(b) < 8+size {
		return nil, errPMPShort
	}
	return b[8 : 8+size], nil
}

func (p natpmp) mapPort(ctx context.Context, gw Gateway, port, external uint16, lifetime time.Duration) (at netip.AddrPort, lease time.Duration, err error) {
	if !gw.Router.Is4() {
		return at, 0, errors.New("NAT-PMP is of IPv4")
	}
	if lifetime == 0 {
		external = 0 // section 3.4
	}
	req := []byte{0, pmpMapUDP, 0, 0}
	req = binary.BigEndian.AppendUint16(req, port)
	req = binary.BigEndian.AppendUint16(req, external)
	req = binary.BigEndian.AppendUint32(req, uint32(lifetime/time.Second))
	err = exchange(ctx, gw, p.port, req, func(b []byte) error {
		b, err := parsePMP(b, pmpMapUDP, 8)
		if err == nil && binary.BigEndian.Uint16(b) != port {
			err = errNotOurs
		}
		if err == nil {
			external, lease = binary.BigEndian.Uint16(b[2:]), time.Duration(binary.BigEndian.Uint32(b[4:]))*time.Second
		}
		return err
	})
	if err != nil || lifetime == 0 {
		return at, 0, err
	}
	err = exchange(ctx, gw, p.port, []byte{0, pmpAddress}, func(b []byte) error {
		b, err := parsePMP(b, pmpAddress, 4)
		if err == nil {
			at = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), external)
		}
		return err
	})
	return at, lease, err
}

package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// nqb is the byte of the IP header that says NQB: flows that do not build queues (RFC 9956, DSCP 45).
//
//	│ DSCP 45: 1 0 1 1 0 1 │ ECN 0 0 │      IPv4: byte 1; IPv6: the 8 bits after the version's 4
const nqb = 45 << 2

// Beside opens a second socket on the port of this one, for datagrams that are not to wait behind its. It marks what it
// sends with the code point of flows that do not build queues, and what comes marked so is its to read. Where a network
// takes the mark away it comes by this one. No third socket gets the port. Close the second with the first.
func (s *Socket) Beside(with func(network, address string, c syscall.RawConn) error) (*Socket, error) {
	if s.udp == nil {
		return nil, errors.ErrUnsupported
	}
	rc, err := s.udp.SyscallConn()
	if err != nil {
		return nil, err
	}
	at := s.udp.LocalAddr().(*net.UDPAddr)
	network, level, opt := "udp6", unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	if at.IP.To4() != nil {
		network, level, opt = "udp4", unix.IPPROTO_IP, unix.IP_TOS
	}
	if err := set(rc, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(network, address string, c syscall.RawConn) error {
		return errors.Join(set(c, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), set(c, level, opt, nqb), with(network, address, c))
	}}
	pc, err := lc.ListenPacket(context.Background(), network, at.String())
	if err == nil {
		if err = steer(rc, network); err == nil {
			return New(pc), nil
		}
		pc.Close()
	}
	return nil, errors.Join(err, set(rc, unix.SOL_SOCKET, unix.SO_REUSEPORT, 0))
}

// steer has the kernel give marked datagrams to the second socket of a port, and all others to the first.
func steer(c syscall.RawConn, network string) error {
	const header = 1<<32 - 0x100000 // SKF_NET_OFF: offsets from there on are in the IP header
	load, mask, shift := unix.SockFilter{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: header + 1}, uint32(0xfc), 0
	if network == "udp6" {
		load, mask, shift = unix.SockFilter{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: header}, 0xfc0, 4
	}
	prog := []unix.SockFilter{
		load,
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nqb << shift, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	}); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("udp: SO_ATTACH_REUSEPORT_CBPF: %w", err)
	}
	return nil
}

func set(c syscall.RawConn, level, opt, value int) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, value) }); e != nil {
		return e
	}
	return err
}

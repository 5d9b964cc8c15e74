package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"
)

const (
	socksVersion = 5
	authVersion  = 1 // of RFC 1929

	methodNone     = 0x00
	methodPassword = 0x02
	methodRefused  = 0xff

	cmdConnect   = 1
	cmdAssociate = 3

	typeIPv4 = 1
	typeName = 3
	typeIPv6 = 4
)

// target is an address as SOCKS5 writes it: an IP address or a name, and a port.
type target struct {
	ip   netip.Addr // invalid when it is a name
	name string
	port uint16
}

// String is "host:port", as Dialer takes it.
func (t target) String() string {
	host := t.name
	if t.ip.IsValid() {
		host = t.ip.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(t.port)))
}

// append writes t as readTarget reads it.
func (t target) append(b []byte) []byte {
	switch {
	case t.ip.Is4():
		b = append(b, typeIPv4)
		b = append(b, t.ip.AsSlice()...)
	case t.ip.IsValid():
		b = append(b, typeIPv6)
		b = append(b, t.ip.AsSlice()...)
	default:
		b = append(b, typeName, byte(len(t.name)))
		b = append(b, t.name...)
	}
	return binary.BigEndian.AppendUint16(b, t.port)
}

// socksError is a request that is answered with a reply code.
type socksError struct {
	code byte
	text string
}

func (e *socksError) Error() string { return "socks5: " + e.text }
func (e *socksError) SOCKS5() byte  { return e.code }

// readTarget reads an address (RFC 1928 section 5):
//
//	+------+-------------------------------+----------+
//	| ATYP |           DST.ADDR            | DST.PORT |
//	+------+-------------------------------+----------+
//	|  01  | 4 bytes                       |    2     |
//	|  03  | 1 byte length, that many of a name |  2  |
//	|  04  | 16 bytes                      |    2     |
//	+------+-------------------------------+----------+
func readTarget(r io.Reader) (t target, err error) {
	var buf [255 + 2]byte
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return t, err
	}
	n := 0
	kind := buf[0]
	switch kind {
	case typeIPv4:
		n = 4
	case typeIPv6:
		n = 16
	case typeName:
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return t, err
		}
		n = int(buf[0])
	default:
		return t, &socksError{replyBadAddressType, fmt.Sprintf("unknown address type %d", kind)}
	}
	if _, err := io.ReadFull(r, buf[:n+2]); err != nil {
		return t, err
	}
	t.port = binary.BigEndian.Uint16(buf[n:])
	if kind != typeName {
		t.ip, _ = netip.AddrFromSlice(buf[:n])
		t.ip = t.ip.Unmap()
		return t, nil
	}
	t.name = string(buf[:n])
	if ip, err := netip.ParseAddr(t.name); err == nil && ip.Zone() == "" { // clients that make no difference
		return target{ip: ip.Unmap(), port: t.port}, nil
	}
	if !validName(t.name) {
		return t, &socksError{replyFailure, "not a host name"}
	}
	return t, nil
}

// validName says whether s can be a host name: what could change the meaning of "host:port", a log line or a
// header is refused here, once.
func validName(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// readRequest reads what follows the negotiation (RFC 1928 section 4):
//
//	+-----+-----+-----+------------------+
//	| VER | CMD | RSV | address and port |
//	| 05  | 1,3 | 00  | see readTarget   |
//	+-----+-----+-----+------------------+
func readRequest(r io.Reader) (cmd byte, t target, err error) {
	var h [3]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, t, err
	}
	if h[0] != socksVersion || h[2] != 0 {
		return 0, t, &socksError{replyFailure, "malformed request"}
	}
	if t, err = readTarget(r); err != nil {
		return 0, t, err
	}
	if h[1] != cmdConnect && h[1] != cmdAssociate {
		return 0, t, &socksError{replyBadCommand, fmt.Sprintf("command %d is not supported", h[1])}
	}
	return h[1], t, nil
}

// negotiate chooses the method (RFC 1928 section 3, the version byte is read already) and authenticates:
//
//	client  +----------+---------+        client  +----+------+-------+------+--------+
//	        | NMETHODS | METHODS |   then         | 01 | ULEN | UNAME | PLEN | PASSWD |   (RFC 1929)
//	        +----------+---------+                +----+------+-------+------+--------+
//	server  +----+--------+               server  +----+--------+
//	        | 05 | METHOD |                       | 01 | STATUS |
//	        +----+--------+                       +----+--------+
func (s *Server) negotiate(c io.ReadWriter) error {
	var buf [256]byte
	field := func() ([]byte, error) { // a length byte and that many
		if _, err := io.ReadFull(c, buf[:1]); err != nil {
			return nil, err
		}
		b := make([]byte, buf[0])
		_, err := io.ReadFull(c, b)
		return b, err
	}
	methods, err := field()
	if err != nil {
		return err
	}
	want := byte(methodNone)
	if s.auth {
		want = methodPassword
	}
	chosen := byte(methodRefused)
	for _, m := range methods {
		if m == want {
			chosen = m
		}
	}
	if _, err := c.Write([]byte{socksVersion, chosen}); err != nil {
		return err
	}
	if chosen == methodRefused {
		return errors.New("socks5: no acceptable method")
	}
	if want == methodNone {
		return nil
	}
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		return err
	}
	if buf[0] != authVersion {
		return errors.New("socks5: malformed authentication")
	}
	user, err := field()
	if err != nil {
		return err
	}
	password, err := field()
	if err != nil {
		return err
	}
	if !s.authorised(user, password) {
		c.Write([]byte{authVersion, 1})
		return errors.New("socks5: wrong user or password")
	}
	_, err = c.Write([]byte{authVersion, 0})
	return err
}

// reply answers a request (RFC 1928 section 6); bound may be nil.
func reply(c io.Writer, code byte, bound net.Addr) error {
	at := target{ip: netip.IPv4Unspecified()}
	var ap netip.AddrPort
	switch a := bound.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	if ap.IsValid() {
		at = target{ip: ap.Addr().Unmap(), port: ap.Port()}
	}
	_, err := c.Write(at.append([]byte{socksVersion, code, 0}))
	return err
}

// serveSOCKS serves one client, whose first byte has been read.
func (s *Server) serveSOCKS(c *client) {
	if s.negotiate(c) != nil {
		return
	}
	cmd, to, err := readRequest(c)
	if err != nil {
		var se *socksError
		if errors.As(err, &se) {
			reply(c, se.code, nil)
		}
		return
	}
	c.SetDeadline(time.Time{})
	if cmd == cmdAssociate {
		s.associate(c, to)
		return
	}
	if to.port == 0 {
		reply(c, replyFailure, nil)
		return
	}
	conn, err := s.dial(s.ctx, "tcp", to.String())
	if err != nil {
		reply(c, socksReply(err), nil)
		return
	}
	if reply(c, replySucceeded, conn.LocalAddr()) != nil {
		conn.Close()
		return
	}
	relay(c, nil, conn)
}

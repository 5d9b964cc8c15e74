package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// exchange sends a request to a gateway, at 0, 250, 750 and 1750 ms, until it has an answer of the gateway's that take
// does not call somebody else's. What comes from anywhere else is not looked at: the socket is connected.
func exchange(ctx context.Context, gw Gateway, port uint16, req []byte, take func([]byte) error) error {
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: gw.Self.AsSlice(), Zone: gw.Self.Zone()}}
	c, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(gw.Router, port).String())
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })() // at once
	buf := make([]byte, pcpMax+1)
	for wait := 250 * time.Millisecond; ; wait *= 2 {
		if _, err := c.Write(req); err != nil {
			return notThere(err)
		}
		c.SetReadDeadline(time.Now().Add(wait))
		for {
			n, err := c.Read(buf)
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					return notThere(err)
				}
				break
			}
			if err := take(buf[:n]); !errors.Is(err, errNotOurs) {
				return err
			}
		}
		if ctx.Err() != nil || wait >= 2*time.Second {
			return errSilent
		}
	}
}

var errSilent = errors.New("the gateway does not answer")

// notThere says a refused datagram in words.
func notThere(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return errSilent
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return fmt.Errorf("the gateway does not listen: %w", op.Err)
	}
	return err
}

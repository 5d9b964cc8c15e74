package proxy

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	xproxy "golang.org/x/net/proxy"
)

// Who is reset tells the other end the same: what was cut is not taken for whole. An end is passed on as an end.
func TestResetIsPassedOn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	at := serve(t, Options{Dialer: &mesh{names: map[string]string{"cut.hedge.internal:7": l.Addr().String()}}})
	d, err := xproxy.SOCKS5("tcp", at, nil, &net.Dialer{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		client bool // is who goes
		linger int
		want   error
	}{
		{"the target is reset", false, 0, syscall.ECONNRESET},
		{"the client is reset", true, 0, syscall.ECONNRESET},
		{"the target ends", false, -1, io.EOF},
		{"the client ends", true, -1, io.EOF},
	} {
		client, err := d.Dial("tcp", "cut.hedge.internal:7")
		if err != nil {
			t.Fatal(err)
		}
		target, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		goes, stays := target, client
		if c.client {
			goes, stays = client, target
		}
		if _, err := goes.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		stays.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadFull(stays, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		goes.(interface{ SetLinger(int) error }).SetLinger(c.linger)
		goes.Close()
		if _, err := stays.Read(make([]byte, 1)); !errors.Is(err, c.want) {
			t.Errorf("%s: the other end read %v, want %v", c.name, err, c.want)
		}
		stays.Close()
	}
}

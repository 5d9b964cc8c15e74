//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
)

// Two hosts reach each other, a firewall statement stops them, and a capture sees what was said.
func TestLab(t *testing.T) {
	l := New(t)
	a, b := l.Host("a"), l.Host("b")
	var at *net.UDPConn
	if err := b.Do(func() (err error) {
		at, err = net.ListenUDP("udp4", &net.UDPAddr{IP: b.Addr.AsSlice(), Port: 9000})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	c := b.Capture("a marker")
	send := func(s string) error {
		return a.Do(func() error {
			conn, err := net.Dial("udp4", fmt.Sprint(b.Addr, ":9000"))
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte(s))
			return err
		})
	}
	a.Firewall("meta l4proto udp drop")
	if err := send("dropped"); err == nil || !errors.Is(err, os.ErrPermission) {
		t.Errorf("the firewall let a datagram out: %v", err) // a drop in the output hook is EPERM to the sender
	}
	a.Firewall()
	if err := send("with a marker in it"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, _, err := at.ReadFromUDP(buf)
	if err != nil || string(buf[:n]) != "with a marker in it" {
		t.Fatalf("b got %q, %v", buf[:n], err)
	}
	for c.Found("a marker") == 0 { // the capture reads on its own; the test's deadline bounds this
		if t.Context().Err() != nil {
			t.Fatal("the capture saw ", c)
		}
	}
	if out, err := a.Command(context.Background(), "ip", "-br", "addr").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

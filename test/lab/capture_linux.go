package lab

import (
	"bytes"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Capture is everything that crossed a host's interface, both ways.
type Capture struct {
	fd   int
	done chan struct{}

	mu    sync.Mutex
	bytes int
	found map[string]int // how often each needle was seen
}

// Capture watches this host's wire for the needles until Stop.
func (h *Host) Capture(needles ...string) *Capture {
	h.lab.t.Helper()
	c := &Capture{done: make(chan struct{}), found: map[string]int{}}
	err := h.Do(func() (err error) {
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		eth0, err := net.InterfaceByName("eth0") // not lo, on which a host may talk to itself in the clear
		if err != nil {
			return err
		}
		if err := unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: eth0.Index}); err != nil {
			return err
		}
		tv := unix.NsecToTimeval(int64(50 * time.Millisecond)) // so that read sees Stop
		return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	})
	if err != nil {
		h.lab.t.Fatalf("capture on %s: %v", h.Name, err)
	}
	stop := make(chan struct{})
	var once sync.Once
	go func() {
		defer close(c.done)
		c.read(needles, stop)
	}()
	h.lab.t.Cleanup(func() { once.Do(func() { close(stop) }); <-c.done; unix.Close(c.fd) })
	return c
}

func (c *Capture) read(needles []string, stop <-chan struct{}) {
	buf := make([]byte, 1<<17) // a veth hands over whole GSO packets
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if err != nil {
			continue // the timeout, or an interrupted call
		}
		c.mu.Lock()
		c.bytes += n
		for _, s := range needles {
			c.found[s] += bytes.Count(buf[:n], []byte(s))
		}
		c.mu.Unlock()
	}
}

// Bytes is how much has crossed the wire so far.
func (c *Capture) Bytes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// Found is how often the needle has crossed the wire.
func (c *Capture) Found(needle string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.found[needle]
}

// String says what was seen.
func (c *Capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%d bytes, %v", c.bytes, c.found)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

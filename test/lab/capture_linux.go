package lab

import (
	"bytes"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// Capture is everything that crossed a host's interface, both ways. What the kernel could not keep for it fails the test:
// a needle that was not looked at is not a needle that was not there.
type Capture struct {
	lab  *Lab
	name string
	done chan struct{}

	mu    sync.Mutex
	fd    int
	buf   []byte
	bytes int
	found map[string]int // how often each needle was seen
}

// Capture watches this host's wire for the needles until the test ends.
func (h *Host) Capture(needles ...string) *Capture {
	h.lab.t.Helper()
	c := &Capture{lab: h.lab, name: h.Name, done: make(chan struct{}), found: map[string]int{}}
	c.buf = make([]byte, 1<<17) // a veth hands over whole GSO packets
	for _, s := range needles {
		c.found[s] = 0
	}
	err := h.Do(func() (err error) {
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // bound to a protocol below
		if err != nil {
			return err
		}
		eth0, err := net.InterfaceByName("eth0") // not lo, on which a host may talk to itself in the clear
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
			return err
		}
		return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: eth0.Index})
	})
	if err != nil {
		h.lab.t.Fatalf("capture on %s: %v", h.Name, err)
	}
	stop := make(chan struct{})
	go func() {
		defer close(c.done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, 50) // so that it sees stop
			c.mu.Lock()
			c.drain()
			c.mu.Unlock()
		}
	}()
	h.lab.t.Cleanup(func() {
		close(stop)
		<-c.done
		c.mu.Lock()
		defer c.mu.Unlock()
		if stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || stats.Drops > 0 {
			c.lab.t.Errorf("capture on %s: %+v packets were not looked at: %v", c.name, stats, err)
		}
		unix.Close(c.fd)
	})
	return c
}

// drain takes all that has crossed the wire by now. The caller holds mu.
func (c *Capture) drain() {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		c.bytes += n
		for s := range c.found {
			c.found[s] += bytes.Count(c.buf[:n], []byte(s))
		}
	}
}

// Bytes is how much has crossed the wire so far.
func (c *Capture) Bytes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
	return c.bytes
}

// Found is how often the needle has crossed the wire.
func (c *Capture) Found(needle string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
	return c.found[needle]
}

// String says what was seen.
func (c *Capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%d bytes, %v", c.bytes, c.found)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

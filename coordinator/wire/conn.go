package wire

import (
	"net"

	"github.com/hedge-mesh/hedge/node/key"
)

// Conn is one end of a channel between a node and its coordinator. Send and Close may be called at any time from
// any goroutine, Recv from one. After any error the Conn is of no more use and must be closed.
type Conn struct {
	nc      net.Conn
	url     string
	machine key.MachinePublic
	control key.ControlPublic
}

// Machine is the key the node has proven to hold.
func (c *Conn) Machine() key.MachinePublic { return c.machine }

// Control is the key the coordinator has proven to hold.
func (c *Conn) Control() key.ControlPublic { return c.control }

// URL is the one that Dial reached the coordinator by; empty at the coordinator's end.
func (c *Conn) URL() string { return c.url }

// RemoteAddr is the other end's address, or that of a proxy in between.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// Send writes one message: one of the message types of this package, or a pointer to it.
func (c *Conn) Send(msg any) error { panic("todo") }

// Recv returns a pointer to the next message.
func (c *Conn) Recv() (any, error) { panic("todo") }

// Close ends the channel and waits for everything it started.
func (c *Conn) Close() error { panic("todo") }

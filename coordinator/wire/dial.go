package wire

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/hedge-mesh/hedge/node/key"
)

// DialConfig is what a node needs to reach its coordinator.
type DialConfig struct {
	URLs    []string          // "https://host:port" or "http://…": any of them reaches it
	Pin     key.ControlPublic // from the join string
	Machine key.MachinePrivate
	// NetDial replaces the dialer of TCP connections; nil means the system's.
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// AcceptConfig is what a coordinator needs to take a node's channel.
type AcceptConfig struct {
	Control key.ControlPrivate
	// Certificate is key.Certificate(Control), so that it is made once; if empty, Accept makes it.
	Certificate tls.Certificate
}

// Dial opens a channel to the coordinator at whichever of the URLs answers first with the pinned key. It fails with
// a [PinError] if something answered but was not the coordinator, else with an [UnreachableError].
func Dial(ctx context.Context, c DialConfig) (*Conn, error) { panic("todo") }

// Accept takes the channel that a node opened by an HTTP request.
func Accept(w http.ResponseWriter, r *http.Request, c AcceptConfig) (*Conn, error) { panic("todo") }

// PinError says that what answered is not the coordinator that the join string names.
type PinError struct {
	URL  string
	Want key.ControlPublic // the pin
	Got  key.ControlPublic
}

func (e *PinError) Error() string {
	return fmt.Sprintf("wire: %s is not the coordinator of the join string: it holds key %s, want %s; "+
		"if the coordinator was set up anew, get a new join string from its admin, else something is impersonating it",
		e.URL, e.Got, e.Want)
}

// UnreachableError says why each URL failed.
type UnreachableError struct {
	Tried []Attempt
}

// Attempt is one URL and why it failed.
type Attempt struct {
	URL string
	Err error
}

func (e *UnreachableError) Error() string {
	var b strings.Builder
	b.WriteString("wire: cannot reach the coordinator")
	for i, t := range e.Tried {
		b.WriteString(map[bool]string{true: ": ", false: "; "}[i == 0])
		fmt.Fprintf(&b, "%s: %v", t.URL, t.Err)
	}
	return b.String()
}

// Unwrap gives errors.Is and errors.As every cause.
func (e *UnreachableError) Unwrap() []error {
	errs := make([]error, len(e.Tried))
	for i, t := range e.Tried {
		errs[i] = t.Err
	}
	return errs
}

package wire

import (
	"fmt"

	"github.com/hedge-mesh/hedge/node/key"
)

// Join is what a join string says: where the coordinator is, which key it holds, and what admits a node.
type Join struct {
	URLs []string          `cbor:"1,keyasint"`
	Pin  key.ControlPublic `cbor:"2,keyasint"`
	Key  string            `cbor:"3,keyasint,omitempty"` // the enrolment key, a secret; may be empty
}

// String is the join string. It is a secret if Key is set; printing a Join with a verb hides it.
func (j Join) String() string { panic("todo") }

// Format hides the key, whatever the verb.
func (j Join) Format(s fmt.State, _ rune) { fmt.Fprint(s, "hedge1-(hidden)") }

// ParseJoin reads a join string. It tells a typo from a string that some other release wrote.
func ParseJoin(s string) (Join, error) { panic("todo") }

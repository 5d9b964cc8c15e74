package wire

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"

	"github.com/fxamacker/cbor/v2"
)

// A tag says which message a frame holds. Tags are for ever: a retired one is not used again.
type tag uint8

const (
	tagHello     tag = 1
	tagAck       tag = 2
	tagHere      tag = 3
	tagLogout    tag = 4
	tagAdvertise tag = 5
	tagDelta     tag = 16
	tagWhere     tag = 17
	tagTicket    tag = 18
	tagRefused   tag = 19
)

// Limits of the CBOR decoder, on top of the size of a frame. The largest honest message is a whole Map of a
// large mesh; the deepest is Delta > rule > target > ports > range > number.
const (
	maxNesting  = 12
	maxElements = 1 << 17 // of one array or map
)

// Unknown fields. What a coordinator says is refused if it holds a field this release does not know: an older
// node must not enforce half of a rule (a condition it skips would widen it), so growth there needs a Version,
// and a coordinator sends to each node what that node's Version has. What a node says may grow: an unknown field
// of Hello or Here is skipped, and the worst that comes of it is a missing feature.
var (
	encoder  = must(encOptions().EncMode())
	strict   = must(decOptions(cbor.ExtraDecErrorUnknownField).DecMode())
	tolerant = must(decOptions(cbor.ExtraDecErrorNone).DecMode())
)

func encOptions() cbor.EncOptions {
	o := cbor.CoreDetEncOptions() // RFC 8949 section 4.2.1: the same value is the same bytes
	o.Time = cbor.TimeUnix
	o.NilContainers = cbor.NilContainerAsEmpty // none and nil are one value, and have one hash
	return o
}

func decOptions(unknown cbor.ExtraDecErrorCond) cbor.DecOptions {
	return cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:   maxNesting,
		MaxArrayElements:  maxElements,
		MaxMapPairs:       maxElements,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: unknown,
		UTF8:              cbor.UTF8RejectInvalid,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		NaN:               cbor.NaNDecodeForbidden,
		Inf:               cbor.InfDecodeForbidden,
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // options are constants
	}
	return v
}

// Encode gives a message its tag and its deterministic bytes: tag, then one CBOR value.
//
//	 0     1
//	┌─────┬───────────────
//	│ tag │ CBOR value …
//	└─────┴───────────────
func Encode(msg any) ([]byte, error) {
	t, ok := tagOf(msg)
	if !ok {
		return nil, fmt.Errorf("wire: %T is not a message", msg)
	}
	var b bytes.Buffer
	b.WriteByte(byte(t))
	if err := encoder.NewEncoder(&b).Encode(msg); err != nil {
		return nil, fmt.Errorf("wire: encode %T: %w", msg, err)
	}
	if b.Len() > MaxMessage {
		return nil, fmt.Errorf("wire: a %T of %d bytes is over the limit of %d", msg, b.Len(), MaxMessage)
	}
	return b.Bytes(), nil
}

// Decode reads what Encode wrote, and returns a pointer to the message. It takes memory in proportion to b.
func Decode(b []byte) (any, error) {
	if len(b) == 0 {
		return nil, errors.New("wire: a message without a tag")
	}
	msg, mode := empty(tag(b[0]))
	if msg == nil {
		return nil, fmt.Errorf("wire: unknown message %d: is the other end a newer release?", b[0])
	}
	if err := mode.Unmarshal(b[1:], msg); err != nil {
		return nil, fmt.Errorf("wire: decode %s: %w", reflect.TypeOf(msg).Elem().Name(), err)
	}
	return msg, nil
}

func tagOf(msg any) (tag, bool) {
	switch msg.(type) {
	case *Hello, Hello:
		return tagHello, true
	case *Ack, Ack:
		return tagAck, true
	case *Here, Here:
		return tagHere, true
	case *Logout, Logout:
		return tagLogout, true
	case *Advertise, Advertise:
		return tagAdvertise, true
	case *Delta, Delta:
		return tagDelta, true
	case *Where, Where:
		return tagWhere, true
	case *Ticket, Ticket:
		return tagTicket, true
	case *Refused, Refused:
		return tagRefused, true
	}
	return 0, false
}

func empty(t tag) (any, cbor.DecMode) {
	switch t {
	case tagHello:
		return new(Hello), tolerant
	case tagAck:
		return new(Ack), tolerant
	case tagHere:
		return new(Here), tolerant
	case tagLogout:
		return new(Logout), tolerant
	case tagAdvertise:
		return new(Advertise), tolerant
	case tagDelta:
		return new(Delta), strict
	case tagWhere:
		return new(Where), strict
	case tagTicket:
		return new(Ticket), strict
	case tagRefused:
		return new(Refused), tolerant // whatever else it says, the reason must reach a person
	}
	return nil, nil
}

package wire

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/hedge-mesh/hedge/node/key"
)

// Join is what a join string says: where the coordinator is, which key it holds, and what admits a node.
//
//	hedge1-<base32>      base32 (RFC 4648, lower case, no padding) of:
//
//	┌──────────────────────────┬──────────────────────────┐
//	│ CBOR {1: URLs, 2: pin,   │ first 4 bytes of the     │
//	│       3: enrolment key}  │ SHA-256 of what precedes │
//	└──────────────────────────┴──────────────────────────┘
type Join struct {
	URLs []string          `cbor:"1,keyasint"`
	Pin  key.ControlPublic `cbor:"2,keyasint"`
	Key  string            `cbor:"3,keyasint,omitempty"` // the enrolment key, a secret; may be empty
}

const (
	joinPrefix = "hedge1-"
	joinSum    = 4
	maxJoin    = 4 << 10 // characters
)

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String is the join string. It is a secret if Key is set; so a verb of fmt does not show it, only a call does.
func (j Join) String() string {
	b, err := encoder.Marshal(j)
	if err != nil {
		panic(err) // strings and a key always encode
	}
	sum := sha256.Sum256(b)
	return joinPrefix + base32Lower.EncodeToString(append(b, sum[:joinSum]...))
}

// Format hides the key, whatever the verb.
func (j Join) Format(s fmt.State, _ rune) { fmt.Fprint(s, joinPrefix+"(hidden)") }

// GoString hides the key.
func (j Join) GoString() string { return joinPrefix + "(hidden)" }

// ParseJoin reads a join string. It tells a typo from a string that another release wrote, and shows no part of it
// in an error. White space, as comes of copying a wrapped line, does not count.
func ParseJoin(s string) (Join, error) {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, s)
	if len(s) > maxJoin {
		return Join{}, errors.New("wire: that is too long for a join string")
	}
	digits, ok := strings.CutPrefix(s, joinPrefix)
	if !ok {
		if v, _, found := strings.Cut(s, "-"); found && strings.HasPrefix(v, "hedge") {
			return Join{}, errors.New("wire: the join string is of another release of Hedge; update this one")
		}
		return Join{}, fmt.Errorf("wire: that is not a join string, which starts with %s; an admin makes one with: hedge admin join-key create", joinPrefix)
	}
	errTypo := errors.New("wire: the join string has a typo or is cut short: its checksum does not match; copy it again, whole")
	b, err := base32Lower.DecodeString(digits)
	if err != nil || len(b) <= joinSum || base32Lower.EncodeToString(b) != digits {
		return Join{}, errTypo
	}
	body, sum := b[:len(b)-joinSum], sha256.Sum256(b[:len(b)-joinSum])
	if string(sum[:joinSum]) != string(b[len(body):]) {
		return Join{}, errTypo
	}
	var j Join
	if err := tolerant.Unmarshal(body, &j); err != nil {
		return Join{}, errors.New("wire: the join string does not hold what one holds; get a new one")
	}
	if len(j.URLs) == 0 || j.Pin.IsZero() {
		return Join{}, errors.New("wire: the join string names no coordinator; get a new one")
	}
	for _, u := range j.URLs {
		if _, err := controlURL(u); err != nil {
			return Join{}, fmt.Errorf("wire: the join string has a bad URL: %w", err)
		}
	}
	return j, nil
}

package wire

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
)

// mapMagic starts a saved Map; its last byte is the version of the form.
const mapMagic = "hedge map\x01"

// EncodeMap is the form in which a node keeps its Map on disk. The node does the writing: 0600, fsync, rename, fsync of
// the directory.
//
//	 0             10        42
//	┌─────────────┬─────────┬───────────────
//	│ "hedge map" │ SHA-256 │ CBOR Map …
//	│ version u8  │ of rest │
//	└─────────────┴─────────┴───────────────
func EncodeMap(m *Map) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	b, err := encoder.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("wire: encode map: %w", err)
	}
	sum := sha256.Sum256(b)
	return bytes.Join([][]byte{[]byte(mapMagic), sum[:], b}, nil), nil
}

// DecodeMap reads what EncodeMap wrote, and holds it to all that Apply would. On an error, the node forgets the file
// and asks its coordinator.
func DecodeMap(b []byte) (*Map, error) {
	rest, ok := bytes.CutPrefix(b, []byte(mapMagic))
	if !ok {
		return nil, errors.New("wire: that is not a saved map, or one of another release")
	}
	if len(rest) < sha256.Size {
		return nil, errors.New("wire: the saved map is cut short")
	}
	if sum := sha256.Sum256(rest[sha256.Size:]); !bytes.Equal(sum[:], rest[:sha256.Size]) {
		return nil, errors.New("wire: the saved map is damaged: its checksum does not match")
	}
	m := new(Map)
	if err := strict.Unmarshal(rest[sha256.Size:], m); err != nil {
		return nil, fmt.Errorf("wire: decode map: %w", err)
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return m, nil
}

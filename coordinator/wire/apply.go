package wire

// Apply returns the Map that the Delta makes of m, and leaves m as it is; the two share what did not change. A nil
// m is a Map that has nothing. Any inconsistency is an error, upon which the node asks for the whole (Hello without
// revision and hashes).
func (m *Map) Apply(d *Delta) (*Map, error) { panic("todo") }

// See returns the Map with the soft plane's news. News of nodes that are not peers is skipped.
func (m *Map) See(w *Where) *Map { panic("todo") }

// Hashes are those of the durable sections.
func (m *Map) Hashes() (Hashes, error) { panic("todo") }

// Diff is the smallest Delta with which old.Apply gives the durable plane of new. A nil old gives a Reset.
func Diff(old, new *Map) *Delta { panic("todo") }

// Missing is the Delta for a node that says it has revision and hashes: it holds the sections of new that differ, whole.
func Missing(revision uint64, have Hashes, new *Map) (*Delta, error) { panic("todo") }

// Empty reports whether the Delta changes nothing but the revision.
func (d *Delta) Empty() bool { panic("todo") }

// EncodeMap is the form in which a node keeps its Map on disk: versioned and with a checksum.
func EncodeMap(m *Map) ([]byte, error) { panic("todo") }

// DecodeMap reads what EncodeMap wrote.
func DecodeMap(b []byte) (*Map, error) { panic("todo") }

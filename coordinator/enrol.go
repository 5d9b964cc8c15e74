package coordinator

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/key"
)

// An enrolment key is "id.secret": the store has the id, by which it is found, and the hash of the secret.
const (
	keyIDLen     = 8  // characters of base32: for people to name it
	keySecretLen = 32 // characters of base32: 160 bits, so that one hash is enough
)

var lower32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func newSecret() (id, secret string, hash []byte) {
	b := make([]byte, 25)
	rand.Read(b)
	s := lower32.EncodeToString(b)
	id, secret = s[:keyIDLen], s[keyIDLen:keyIDLen+keySecretLen]
	sum := sha256.Sum256([]byte(secret))
	return id, secret, sum[:]
}

func refuse(code wire.RefusalCode, format string, args ...any) *wire.Refused {
	return &wire.Refused{Code: code, Message: fmt.Sprintf(format, args...)}
}

// newJoin is what an enrolment key that does not stand needs.
const newJoin = "ask the admin for a new join string (hedge admin join-key create)"

// find returns the key that the text names, if it is it. What is wrong is not told apart.
func (s *state) find(text string) (*joinKey, *wire.Refused) {
	id, secret, _ := strings.Cut(text, ".")
	k := s.keys[id]
	sum := sha256.Sum256([]byte(secret))
	want := make([]byte, sha256.Size)
	if k != nil {
		want = k.Hash
	}
	if subtle.ConstantTimeCompare(sum[:], want) != 1 {
		return nil, refuse(wire.RefusedKeyWrong, "the coordinator knows no such join key: "+newJoin)
	}
	return k, nil
}

// stands reports why a key lets nobody in, or nil.
func (k *joinKey) stands(now time.Time) *wire.Refused {
	switch {
	case k.Revoked:
		return refuse(wire.RefusedKeyEnded, "the join key %s was revoked: "+newJoin, k.ID)
	case k.Uses > 0 && !k.Reusable:
		return refuse(wire.RefusedKeyUsed, "the join key %s has been used, and was good for one machine: "+newJoin, k.ID)
	case !k.Expires.IsZero() && !now.Before(k.Expires):
		return refuse(wire.RefusedKeyEnded, "the join key %s expired on %s: "+newJoin, k.ID, k.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

func (k *joinKey) used() *joinKey {
	u := *k
	u.Uses++
	return &u
}

// mesh are the settings that decide what a new node gets.
type mesh struct {
	v4, v6   netip.Prefix
	lifetime time.Duration
}

// admit decides what a machine's Hello means: the node that it is, and the change that makes it so, if there is any.
// The machine key has been proven; nothing else in the Hello has.
func (s *state) admit(m mesh, machine key.MachinePublic, h *wire.Hello, now time.Time) (*node, *change, *wire.Refused) {
	if h.Version != wire.Version {
		return nil, nil, refuse(wire.RefusedVersion, "this node speaks version %d of the protocol, and the coordinator version %d: update the older of the two",
			h.Version, wire.Version)
	}
	if h.Node.IsZero() || len(h.Name) > 255 || len(h.Enrol) > 255 {
		return nil, nil, refuse(wire.RefusedMalformed, "the node sent no key, or a name that is too long")
	}
	if other := s.byKey.get(h.Node); other != nil && other.Machine != machine {
		return nil, nil, refuse(wire.RefusedMalformed, "this node key belongs to another machine: was this state directory copied? "+
			"Remove the copy, and join with a join string of its own")
	}
	if n := s.byMachine.get(machine); n != nil {
		return s.readmit(m, n, h, now)
	}
	if h.Enrol == "" {
		if no := s.removed(machine); no != nil {
			return nil, nil, no
		}
		return nil, nil, refuse(wire.RefusedUnknown, "the coordinator does not know this machine: to join, "+newJoin)
	}
	return s.enrol(m, machine, h, now)
}

// removed says so if an admin removed the machine's node.
func (s *state) removed(machine key.MachinePublic) *wire.Refused {
	g := s.gone[machine]
	if g == nil {
		return nil
	}
	return refuse(wire.RefusedRemoved, "an admin removed this node (%s) on %s: to join again, %s", g.Name, g.When.UTC().Format(time.RFC3339), newJoin)
}

// readmit takes back a node that is known.
func (s *state) readmit(m mesh, was *node, h *wire.Hello, now time.Time) (*node, *change, *wire.Refused) {
	n := *was
	c := &change{nodes: map[acl.NodeID]*node{}}
	n.Key, n.OS, n.Software = h.Node, printable(h.OS), printable(h.Software)
	n.Advertised, _ = m.proper(h.Routes)
	if h.Enrol != "" {
		k, no := s.find(h.Enrol)
		switch {
		case no != nil && was.expired(now):
			return nil, nil, no
		case no != nil: // it is in already, and needs none
		case k.owner() != was.owner():
			return nil, nil, refuse(wire.RefusedOwner, "this machine is already %s of %s, and the join key is for %s: log out first, then join again",
				was.Name, was.owner(), k.owner())
		case was.expired(now):
			if no := k.stands(now); no != nil {
				return nil, nil, no
			}
			n.Expires, n.JoinKey = now.Add(m.lifetime), k.ID
			c.keys = map[string]*joinKey{k.ID: k.used()}
		}
	}
	if n.expired(now) {
		return nil, nil, refuse(wire.RefusedExpired, "this node's key expired on %s: to keep its name and address, %s and join with it",
			was.Expires.UTC().Format(time.RFC3339), newJoin)
	}
	if n.Key == was.Key && n.OS == was.OS && n.Software == was.Software && n.Expires.Equal(was.Expires) && slices.Equal(n.Advertised, was.Advertised) {
		return was, nil, nil
	}
	c.nodes[n.ID] = &n
	return &n, c, nil
}

// enrol makes a node of a machine that holds a key to it. The key is consumed in the same change.
func (s *state) enrol(m mesh, machine key.MachinePublic, h *wire.Hello, now time.Time) (*node, *change, *wire.Refused) {
	k, no := s.find(h.Enrol)
	if no == nil {
		no = k.stands(now)
	}
	if no != nil {
		return nil, nil, no
	}
	if s.users[k.User] == nil && len(k.Tags) == 0 {
		return nil, nil, refuse(wire.RefusedKeyEnded, "the join key's user is not known any more: "+newJoin)
	}
	name, no := s.nameFor(h)
	if no != nil {
		return nil, nil, no
	}
	id := s.lastID + 1
	a4, ok4 := s.free(m.v4, id)
	a6, ok6 := s.free(m.v6, id)
	if !ok4 || !ok6 {
		return nil, nil, refuse(wire.RefusedBusy, "the mesh has no address left in %v and %v: the admin must remove nodes or widen them", m.v4, m.v6)
	}
	n := &node{ID: id, Name: name, User: k.User, Tags: k.Tags, Addrs: []netip.Addr{a4, a6}, Machine: machine, Key: h.Node,
		Created: now, Expires: now.Add(m.lifetime), Ephemeral: k.Ephemeral || h.Ephemeral, OS: printable(h.OS), Software: printable(h.Software), JoinKey: k.ID}
	n.Advertised, _ = m.proper(h.Routes)
	c := &change{nodes: map[acl.NodeID]*node{id: n}, keys: map[string]*joinKey{k.ID: k.used()}, lastID: id}
	if s.gone[machine] != nil {
		c.gone = map[key.MachinePublic]*tombstone{machine: nil}
	}
	return n, c, nil
}

// nameFor makes a DNS label of the name wanted, and gives it a number if it is taken.
func (s *state) nameFor(h *wire.Hello) (string, *wire.Refused) {
	name := label(h.Name)
	if h.Exact && name != h.Name {
		return "", refuse(wire.RefusedName, "%q is not a name for a node: use letters, digits and hyphens, at most 63, such as %q", printable(h.Name), name)
	}
	if s.byName.get(name) == nil {
		return name, nil
	}
	if h.Exact {
		return "", refuse(wire.RefusedName, "the name %q is taken: choose another with --name, or have the admin remove the node that has it (hedge admin node remove %s)", name, name)
	}
	for i := 2; ; i++ {
		suffix := fmt.Sprintf("-%d", i)
		numbered := strings.TrimRight(name[:min(len(name), 63-len(suffix))], "-") + suffix
		if s.byName.get(numbered) == nil {
			return numbered, nil
		}
	}
}

// label turns what a machine calls itself into one DNS label (RFC 1123 section 2.1).
func label(s string) string {
	s, _, _ = strings.Cut(s, ".")
	s = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, s)
	s = strings.Trim(s[:min(len(s), 63)], "-")
	if s == "" {
		return "node"
	}
	return s
}

// free returns an unused address of the prefix: that of the node's number if it can be had, so that an address is
// given again as late as possible.
func (s *state) free(p netip.Prefix, id acl.NodeID) (netip.Addr, bool) {
	host := p.Addr().BitLen() - p.Bits()
	size := uint64(1) << min(host, 62)
	if size < 4 {
		return netip.Addr{}, false
	}
	usable := size - 2 // neither the first nor the last
	for i := range min(usable, uint64(s.byAddr.len())+1) {
		a := offset(p, (uint64(id)-1+i)%usable+1)
		if s.byAddr.get(a) == nil {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func offset(p netip.Prefix, n uint64) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		b[i] |= byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// printable makes what a node says of itself fit to be shown and logged.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), 64)], "")
}

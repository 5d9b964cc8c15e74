package acl

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Service is a kind of flow, and the rule that decides about it.
type Service struct {
	Proto uint8     `json:"proto"`
	Ports PortRange `json:"ports"` // AllPorts where the protocol has none
	Rule  string    `json:"rule"`  // "acls[3]"
	Pos   Pos       `json:"pos"`
	// From is the first time from now on at which this is so; zero means at all times.
	From time.Time `json:"from,omitzero"`
}

// String is the service as people say it: "tcp/5432", "icmp", and "relay" for the use as a peer relay.
func (s Service) String() string {
	if s.Proto == protoRelay {
		return "relay"
	}
	if !hasPorts(s.Proto) {
		return protoName(s.Proto)
	}
	return protoName(s.Proto) + "/" + s.Ports.String()
}

// change is what differs between two sides for a pair of classes: gained on the second, and lost.
type change struct {
	gained, lost []Service
}

func (c *change) empty() bool { return len(c.gained)+len(c.lost) == 0 }

// judge compares the sides for a pair. The same rules give the same answer, which is given once.
func (x *comparer) judge(src *srcClass, dst *dstClass) *change {
	var cols [2][]int32
	key := []byte{0}
	if dst.v6 {
		key[0] = 1
	}
	for k, s := range x.sides {
		for _, col := range dst.cols[k] {
			if src.has[k].has(s.cols[col].rule) {
				cols[k] = append(cols[k], col)
			}
		}
		key = appendList(key, cols[k])
	}
	if c, ok := x.memo[string(key)]; ok {
		return c
	}
	c := &change{}
	ping := uint8(protoICMP)
	if dst.v6 {
		ping = protoICMPv6
	}
	protos := []uint8{protoTCP, protoUDP, ping}
	for k, s := range x.sides {
		for _, col := range cols[k] {
			for _, n := range s.rules[s.cols[col].rule].Protos {
				if n != protoICMP && n != protoICMPv6 && !slices.Contains(protos, n) {
					protos = append(protos, n)
				}
			}
		}
	}
	slices.Sort(protos)
	for _, n := range protos {
		x.ports(c, cols, n)
	}
	x.relaying(c, cols)
	x.memo[string(key)] = c
	return c
}

// ports compares the sides for one protocol, over ports cut where any rule begins or ends, at all times.
func (x *comparer) ports(c *change, cols [2][]int32, proto uint8) {
	cuts := []int{0, 65536}
	for k, s := range x.sides {
		for _, col := range cols[k] {
			for _, p := range s.ranges(col) {
				if hasPorts(proto) {
					cuts = append(cuts, int(p.First), int(p.Last)+1)
				}
			}
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var gained, lost [][]Service // by time
	for t := range x.live {
		var g, l []Service
		for i := 0; i+1 < len(cuts); i++ {
			ports := PortRange{uint16(cuts[i]), uint16(cuts[i+1] - 1)}
			var rule [2]*Rule
			var ok [2]bool
			for k, s := range x.sides {
				rule[k], ok[k] = s.verdict(cols[k], ports.First, proto, x.live[t][k])
			}
			switch {
			case ok[1] && !ok[0]:
				g = extend(g, proto, ports, rule[1])
			case ok[0] && !ok[1] && rule[1] != nil:
				l = extend(l, proto, ports, rule[1])
			case ok[0] && !ok[1]:
				l = extend(l, proto, ports, rule[0])
			}
		}
		gained, lost = append(gained, g), append(lost, l)
	}
	c.gained = append(c.gained, x.throughout(gained)...)
	c.lost = append(c.lost, x.throughout(lost)...)
}

func (s *side) ranges(col int32) []PortRange {
	at := s.cols[col]
	return s.rules[at.rule].Dst[at.target].Ports
}

// verdict judges one port: by the deny that stops it, or the first accept.
func (s *side) verdict(cols []int32, port uint16, proto uint8, live []bool) (rule *Rule, ok bool) {
	var hit *compiled
	for _, col := range cols {
		r := s.rules[s.cols[col].rule]
		if hit != nil && r.Action == Accept && hit.seq <= r.seq || !live[s.cols[col].rule] {
			continue
		}
		if !slices.ContainsFunc(s.ranges(col), func(p PortRange) bool { return r.speaks(p, port, proto) }) {
			continue
		}
		if r.Action == Deny {
			return &r.Rule, false
		}
		hit = r
	}
	if hit == nil {
		return nil, false
	}
	return &hit.Rule, true
}

// extend adds ports to services, to the last one if they go on where it ends.
func extend(l []Service, proto uint8, ports PortRange, r *Rule) []Service {
	if n := len(l); n > 0 && l[n-1].Proto == proto && int(l[n-1].Ports.Last)+1 == int(ports.First) && l[n-1].Rule == r.Path && l[n-1].Pos == r.Pos {
		l[n-1].Ports.Last = ports.Last
		return l
	}
	return append(l, Service{Proto: proto, Ports: ports, Rule: r.Path, Pos: r.Pos})
}

// throughout joins what is so at each time: what is not always so says from when.
func (x *comparer) throughout(at [][]Service) []Service {
	if len(at) == 1 {
		return at[0]
	}
	first := map[Service]int{}
	count := map[Service]int{}
	var out []Service
	for t, l := range at {
		for _, s := range l {
			if count[s] == 0 {
				first[s] = t
				out = append(out, s)
			}
			count[s]++
		}
	}
	for i, s := range out {
		if count[s] < len(at) {
			out[i].From = x.times[first[s]]
		}
	}
	return out
}

// maxTimes bounds the times at which two programs with rules that come and go are compared.
const maxTimes = 256

// findTimes picks a time for each way in which rules are in force together: now, when any rule ends, and when any
// window opens or shuts in the week after these. Windows of different zones may meet in other ways when clocks change.
func (x *comparer) findTimes(now time.Time, atOnce bool) {
	var timed []*Rule
	for _, s := range x.sides {
		for _, r := range s.rules {
			if !atOnce && (!r.Expires.IsZero() || r.Window != "") {
				timed = append(timed, &r.Rule)
			}
		}
	}
	times := []time.Time{now}
	for _, r := range timed {
		if r.Expires.After(now) {
			times = append(times, r.Expires)
		}
	}
	for _, base := range slices.Clone(times) {
		for _, r := range timed {
			w := Rule{Action: Accept, Window: r.Window}
			for t := w.Next(base); w.Window != "" && !t.IsZero() && t.Sub(base) <= 7*24*time.Hour && len(times) < 64*maxTimes; t = w.Next(t) {
				times = append(times, t)
			}
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	seen := map[string]bool{}
	for _, t := range times {
		var l [2][]bool
		key := make([]byte, 0, len(timed))
		for k, s := range x.sides {
			l[k] = make([]bool, len(s.rules))
			for i, r := range s.rules {
				l[k][i] = r.InForce(t)
				if !r.Expires.IsZero() || r.Window != "" {
					key = strconv.AppendBool(key, l[k][i])
				}
			}
		}
		if !seen[string(key)] && len(x.live) < maxTimes {
			seen[string(key)] = true
			x.live, x.times = append(x.live, l), append(x.times, t)
		}
	}
}

// texts gives, for each rule, all that it means, names and members, and not where it stands.
func (c *Program) texts() func(r *compiled) string {
	said := map[*members]string{}
	of := func(m *members) string {
		s, ok := said[m]
		if !ok {
			s = c.meaning(m)
			said[m] = s
		}
		return s
	}
	return func(r *compiled) string {
		var b strings.Builder
		fmt.Fprint(&b, r.Action, r.Protos, r.Expires.UnixNano(), r.Window)
		if r.steered {
			b.WriteString(" via " + of(c.set(r.via)))
		}
		for _, x := range r.src {
			b.WriteByte('|')
			b.WriteString(of(c.set(x)))
		}
		for i, x := range r.dst {
			b.WriteByte('>')
			b.WriteString(of(c.set(x)))
			fmt.Fprint(&b, r.Dst[i].Ports)
		}
		return b.String()
	}
}

// meaning is the same for sets of the same members: a digest, as it goes into many texts.
func (c *Program) meaning(m *members) string {
	h := sha256.New()
	fmt.Fprint(h, m.any, m.set.Prefixes, isInternet(m.name))
	var ids []NodeID
	if m.identities() {
		for i := range m.each() {
			ids = append(ids, c.w.nodes[i].ID)
		}
		slices.Sort(ids)
	}
	buf := make([]byte, 0, 8*len(ids))
	for _, id := range ids {
		buf = binary.LittleEndian.AppendUint64(buf, uint64(id))
	}
	h.Write(buf)
	return string(h.Sum(nil))
}

// finding is a source class, and the destination classes for which the same changed.
type finding struct {
	srcs []NodeID
	v6   bool
	dsts bitset
	*change
}

// enter keeps what changed for a source class, joined with those for whom the same did.
func (x *comparer) enter(src *srcClass, found map[*change]bitset) {
	for ch, b := range found {
		k := findingKey{ch, b.key()}
		f := x.found[k]
		if f == nil {
			f = &finding{v6: src.v6, dsts: b, change: ch}
			x.found[k] = f
		}
		f.srcs = append(f.srcs, src.nodes...)
	}
}

type findingKey struct {
	ch   *change
	dsts string
}

// key is the set as a key of maps.
func (b bitset) key() string {
	out := make([]byte, 0, 8*len(b))
	for _, w := range b {
		out = binary.LittleEndian.AppendUint64(out, w)
	}
	return string(out)
}

// expand lists the nodes that a finding is about, by their place in ids, and the ranges of addresses.
func (x *comparer) expand(f *finding, ids *identities) (srcs, dsts bitset, rest []atom) {
	srcs, dsts = newBitset(len(ids.nodes)), newBitset(len(ids.nodes))
	for _, id := range f.srcs {
		srcs.add(ids.at[id])
	}
	for d := range f.dsts.all() {
		c := x.dsts[d]
		if c.own == nil {
			c.own = newBitset(len(ids.nodes))
			for _, a := range c.atoms {
				if a.own {
					c.own.add(ids.at[a.node])
				} else {
					c.rest = append(c.rest, a)
				}
			}
		}
		dsts.or(c.own)
		rest = append(rest, c.rest...)
	}
	if srcs.count() == 1 { // a node is no destination of its own
		dsts.andNot(srcs)
	}
	return srcs, dsts, rest
}

// prefixesOf are the addresses of ranges.
func prefixesOf(as []atom) []netip.Prefix {
	var rs []ipRange
	for _, a := range as {
		rs = append(rs, a.ipRange)
	}
	return union(rs).prefixes()
}

package node

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hedge-mesh/hedge/acl/filter"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/key"
)

// Status is what this node knows of itself and its peers, now.
func (n *Node) Status() Status {
	now := time.Now()
	cur := n.enforce.cur.Load()
	ctl, problem := n.control.now()
	s := Status{
		State: StateOffline, Problem: problem, Key: n.self.String(), Machine: n.machine.String(),
		Version: n.cfg.Version, PID: os.Getpid(), Started: n.started, Uptime: Seconds(now.Sub(n.started)),
		StateDir: n.state.dir, Control: ctl, Inbound: n.cfg.Inbound.String(), Name: n.control.hello.Name,
		Addrs: []netip.Addr{}, Listen: []string{}, Peers: []Peer{},
		Traffic: Traffic{
			RxBytes: n.tun.rx.bytes.Load(), RxPackets: n.tun.rx.packets.Load(), RxDenied: n.tun.rx.denied.Load(),
			TxBytes: n.tun.tx.bytes.Load(), TxPackets: n.tun.tx.packets.Load(), TxDenied: n.tun.tx.denied.Load(),
		},
	}
	s.Device = n.about
	s.Device.MTU, _ = n.tun.MTU()
	if n.stack == nil {
		s.Inbound = "host"
	}
	if n.proxyAt.IsValid() {
		s.Proxy = n.proxyAt.String()
	}
	for _, e := range n.bind.Endpoints() {
		s.Listen = append(s.Listen, e.String())
	}
	switch {
	case n.ended():
		s.State = StateStopped
	case cur.refused != nil:
		s.State, s.Problem = StateRefused, cur.refused.Message
	case cur.m == nil:
		s.State = StateStarting
	case ctl.Connected:
		s.State = StateRunning
	}
	if s.Problem == "" && !ctl.Connected {
		s.Problem = ctl.LastError
	}
	if cur.m == nil {
		return s
	}
	m := cur.m
	s.ID, s.Name, s.FullName = m.Self.ID, m.Self.Name, fullName(m, m.Self.Name)
	s.User, s.Tags, s.Addrs, s.Expires = m.Self.User, m.Self.Tags, v4First(m.Self.Addrs), m.Self.Expires
	s.Policy = Policy{
		Revision: m.Revision, Since: cur.since, FromDisk: cur.fromDisk, Rules: len(m.Rules), Flows: n.filter.Stats().Flows,
	}
	if home := n.bind.Home(); home != 0 {
		s.Relay.ID = home
		for _, r := range m.Relays {
			if r.ID == home && len(r.URLs) > 0 {
				s.Relay.URL = r.URLs[0]
			}
		}
	}
	wg := n.roster.counters()
	n.statusOfRoutes(&s, cur)
	s.PeerRelay = n.peerRelay(m, now)
	for i := range m.Peers {
		s.Peers = append(s.Peers, n.peer(m, &m.Peers[i], wg, now))
	}
	slices.SortFunc(s.Peers, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	return s
}

func (n *Node) peer(m *wire.Map, p *wire.Peer, wg map[key.NodePublic]counters, now time.Time) Peer {
	where := m.Presence[p.ID]
	c := wg[p.Key]
	out := Peer{
		ID: p.ID, Name: p.Name, FullName: fullName(m, p.Name), User: p.User, Tags: p.Tags, Addrs: v4First(p.Addrs),
		Routes: p.Routes, Key: p.Key.String(), Expires: p.Expires, Expired: !p.Expires.IsZero() && !now.Before(p.Expires),
		Exit: isExit(p), Online: where.Online, LastSeen: where.LastSeen, Path: Path{Kind: "none"},
		RxBytes: c.rx, TxBytes: c.tx, Handshake: c.handshake,
	}
	if path, ok := n.bind.Path(p.Key); ok {
		out.Path = pathOf(path)
	}
	return out
}

func fullName(m *wire.Map, name string) string {
	if m.Self.Domain == "" {
		return name
	}
	return name + "." + m.Self.Domain
}

func pathOf(p bind.PathInfo) Path {
	out := Path{Kind: "none", RTT: Seconds(p.RTT), MTU: p.MTU, Since: p.Since, Heard: p.LastHeard, Why: p.Why}
	switch {
	case p.Direct:
		out.Kind, out.Addr = "direct", p.Addr.String()
	case !p.Hop.IsZero():
		out.Kind, out.Via = "peer-relay", p.HopName
	case p.Relay != 0:
		out.Kind, out.Relay = "relay", p.Relay
	default:
		out.MTU = 0
	}
	return out
}

// counters are what WireGuard counts of a peer.
type counters struct {
	rx, tx    uint64
	handshake time.Time
}

// plus adds those of a later time.
func (c counters) plus(d counters) counters {
	if d.handshake.IsZero() {
		d.handshake = c.handshake
	}
	return counters{c.rx + d.rx, c.tx + d.tx, d.handshake}
}

// parseCounters reads WireGuard's configuration protocol.
func parseCounters(b []byte) map[key.NodePublic]counters {
	out := make(map[key.NodePublic]counters)
	var k key.NodePublic
	var c counters
	var sec int64
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		switch name {
		case "public_key":
			var raw [key.Size]byte
			if len(value) != hex.EncodedLen(key.Size) {
				return out
			}
			if _, err := hex.Decode(raw[:], []byte(value)); err != nil {
				return out
			}
			k, c = key.NodePublicFromRaw(raw), counters{}
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			if nsec, _ := strconv.ParseInt(value, 10, 64); sec != 0 || nsec != 0 {
				c.handshake = time.Unix(sec, nsec)
			}
		case "tx_bytes":
			c.tx, _ = strconv.ParseUint(value, 10, 64)
		case "rx_bytes":
			c.rx, _ = strconv.ParseUint(value, 10, 64)
		default:
			continue
		}
		out[k] = c
	}
	return out
}

// Why says what the policy makes of a new flow to or from this node, and which rule says so.
func (n *Node) Why(q WhyQuery) (WhyResult, error) {
	if q.Proto == 0 {
		q.Proto = protoTCP
	}
	m := n.enforce.cur.Load().m
	if m == nil {
		return WhyResult{}, ErrNotJoined
	}
	pick := func(name string) ([]netip.Addr, error) {
		if name == "" {
			return v4First(m.Self.Addrs), nil
		}
		return n.Resolve(name)
	}
	srcs, err := pick(q.Src)
	if err != nil {
		return WhyResult{}, err
	}
	dsts, err := pick(q.Dst)
	if err != nil {
		return WhyResult{}, err
	}
	for _, src := range srcs {
		for _, dst := range dsts {
			if src.Is4() != dst.Is4() {
				continue
			}
			from, to := slices.Contains(m.Self.Addrs, src), slices.Contains(m.Self.Addrs, dst)
			if _, behind := longest(n.offers(), dst); !from && behind {
				to = true // as far as it is up to this node
			}
			switch {
			case from && to:
				return WhyResult{}, fmt.Errorf("%s is this node itself; no packet would leave it", orSelf(q.Dst, m))
			case !from && !to:
				return WhyResult{}, fmt.Errorf("a node knows only its own flows, and %s is neither %s nor %s; "+
					"ask the policy itself: hedge acl why", m.Self.Name, q.Src, q.Dst)
			}
			return n.why(netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, q.Port), q.Proto, time.Now()), nil
		}
	}
	return WhyResult{}, fmt.Errorf("%s and %s have no address family in common", orSelf(q.Src, m), orSelf(q.Dst, m))
}

func orSelf(name string, m *wire.Map) string {
	if name == "" {
		return m.Self.Name
	}
	return name
}

// why is the filter's verdict on a new flow, with names.
func (n *Node) why(src, dst netip.AddrPort, proto uint8, now time.Time) WhyResult {
	cur := n.enforce.cur.Load()
	v := n.filter.Check(src, dst, proto, now)
	w := WhyResult{
		Allow: v.Allow, Reason: v.Reason.String(), Text: n.filter.Explain(v, src, dst, proto), Direction: "ingress",
		Src: src.Addr().String(), Dst: dst.Addr().String(), Port: dst.Port(), Proto: proto, Rule: v.Rule, Revision: cur.revision(),
	}
	if cur.m == nil {
		return w
	}
	if slices.Contains(cur.m.Self.Addrs, src.Addr()) {
		w.Direction = "egress"
	}
	w.Src, w.Dst = named(cur.m, src.Addr()), named(cur.m, dst.Addr())
	inMesh := within(cur.m.Self.Prefixes, dst.Addr())
	_, routed := routeTo(cur.routes, dst.Addr())
	switch {
	case w.Direction == "egress" && !inMesh && !routed:
		w.Allow, w.Rule, w.Reason, w.Text = false, nil, "no_route", noRoute(cur, n.Routing().ExitNode, dst.Addr())
	case w.Direction == "ingress" && !inMesh && !v.Allow && v.Reason == filter.DstNotOwned:
		if r, ok := longest(n.offers(), dst.Addr()); ok {
			w.Reason, w.Text = "no_route", fmt.Sprintf("denied: route %v is not approved; an admin approves it with: hedge admin node routes %s --approve %v", r, cur.m.Self.Name, r)
		}
	case v.Reason == filter.DstNotOwned && w.Direction == "egress" && inMesh:
		w.Text = fmt.Sprintf("denied: no rule lets %s reach %s, nor the other way: neither knows of the other", w.Src, w.Dst)
	}
	return w
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// named is the name of the node that has an address, or the address.
func named(m *wire.Map, a netip.Addr) string {
	if slices.Contains(m.Self.Addrs, a) {
		return m.Self.Name
	}
	if i := slices.IndexFunc(m.Peers, func(p wire.Peer) bool { return slices.Contains(p.Addrs, a) }); i >= 0 {
		return m.Peers[i].Name
	}
	return a.String()
}

func (n *Node) ended() bool {
	select {
	case <-n.done:
		return true
	default:
		return false
	}
}

// pathChanged is called by the bind when a peer is reached in another way than before.
func (n *Node) pathChanged(c bind.PathChange) {
	n.log.Debug().Str("peer", c.Peer.Short()).Stringer("path", pathOf(c.Path)).Str("why", c.Path.Why).Msg("path changed")
	n.news.tell()
}

// news wakes everyone who waits for the Status to change.
type news struct {
	mu sync.Mutex
	ch chan struct{}
}

// next is closed at the next change.
func (n *news) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}

package filter

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
)

// clock is what a node passes: with a monotonic reading.
var clock = time.Now()

// bigMesh has n peers, and rules in which each names a group of peers and a port of V.
func bigMesh(peers, rules int) *Config {
	c := &Config{Self: node(1_000_000, "v", []string{v4, v6}, "10.9.0.0/16"), Revision: 1, View: acl.View{Sets: map[string]acl.Set{
		"v": {Nodes: []acl.NodeID{1_000_000}}, "*": {Any: true}}}}
	for i := range peers {
		x := i + 0x10000
		c.Peers = append(c.Peers, acl.Node{ID: acl.NodeID(i + 1), Name: fmt.Sprintf("n%d", i), Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{100, 64 + byte(x>>16), byte(x >> 8), byte(x)}),
			netip.MustParseAddr(fmt.Sprintf("fd68:6564:6765::1:%x", i))}})
	}
	for i := range rules {
		name := fmt.Sprintf("group:%d", i)
		var s acl.Set
		for j := i % 97; j < peers; j += 97 {
			s.Nodes = append(s.Nodes, acl.NodeID(j+1))
		}
		c.View.Sets[name] = s
		c.View.Rules = append(c.View.Rules, rule(1, acl.Accept, name, "v", ports(uint16(1+i*5%60000)), protoTCP))
	}
	c.View.Rules = append(c.View.Rules, rule(2, acl.Accept, "*", "v", ports(443, 53)))
	return c
}

func BenchmarkEstablished(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		for _, proto := range []string{"udp", "tcp"} {
			b.Run(fmt.Sprintf("%s/rules=%d", proto, rules), func(b *testing.B) {
				f := New(Options{})
				c := bigMesh(10000, rules)
				f.Set(c, clock)
				src := c.Peers[77].Addrs[0].String()
				pkt := ip(src, v4, udp(5000, 53, 1200))
				if proto == "tcp" {
					open(b, f.In, ip(src, v4, tcpSeg(5000, 443, syn, 999, 0, "")), ByRule)
					open(b, f.Out, ip(v4, src, tcpSeg(443, 5000, syn|ackFlag, 4999, 1000, "")), ByFlow)
					open(b, f.In, ip(src, v4, tcpSeg(5000, 443, ackFlag, 1000, 5000, "")), ByFlow)
					pkt = ip(src, v4, tcpSeg(5000, 443, ackFlag, 1000, 5000, string(make([]byte, 1200))))
				} else {
					open(b, f.In, pkt, ByRule)
				}
				b.ReportAllocs()
				for b.Loop() {
					if !f.In(pkt, clock).Allow {
						b.Fatal("denied")
					}
				}
			})
		}
	}
}

// BenchmarkNewFlow opens flows over and over while so many live; 65,536 do not fit the processor's cache.
func BenchmarkNewFlow(b *testing.B) {
	for _, live := range []int{1 << 10, 1 << 16} {
		for _, rules := range []int{10, 1000, 10000} {
			b.Run(fmt.Sprintf("live=%d/rules=%d", live, rules), func(b *testing.B) {
				f := New(Options{MaxFlows: 1 << 18, MaxFlowsPerPeer: 1 << 18})
				c := bigMesh(10000, rules)
				f.Set(c, clock)
				pkt := ip(c.Peers[77].Addrs[0].String(), v4, udp(5000, 53, 100))
				now, n := clock, 0
				for n < live { // what grows does so before
					n++
					pkt[20], pkt[21] = byte(n>>8), byte(n)
					open(b, f.In, pkt, ByRule)
				}
				now, n = now.Add(time.Minute), 0
				b.ReportAllocs()
				for b.Loop() {
					n++
					pkt[20], pkt[21] = byte(n>>8), byte(n)
					if n&(live-1) == 0 { // the old ones have idled out and are replaced as they come again
						n, now = 0, now.Add(time.Minute)
					}
					if v := f.In(pkt, now); v.Reason != ByRule {
						b.Fatal(v)
					}
				}
			})
		}
	}
}

func BenchmarkNewFlowManyPeers(b *testing.B) {
	f := New(Options{MaxFlows: 1 << 17, MaxFlowsPerPeer: 1 << 17})
	c := bigMesh(10000, 10000)
	f.Set(c, clock)
	var pkts [][]byte
	for i := range c.Peers {
		pkts = append(pkts, ip(c.Peers[i*7919%10000].Addrs[0].String(), v4, udp(5000, 53, 100)))
	}
	now, n := clock, 0
	b.ReportAllocs()
	for b.Loop() {
		pkt := pkts[n%10000]
		n++
		if n%10000 == 0 {
			now = now.Add(time.Minute)
		}
		if v := f.In(pkt, now); v.Reason != ByRule {
			b.Fatal(v)
		}
	}
}

func BenchmarkDenied(b *testing.B) {
	f := New(Options{})
	c := bigMesh(10000, 10000)
	f.Set(c, clock)
	pkt := ip(c.Peers[77].Addrs[0].String(), v4, tcp(5000, 9999, syn))
	b.ReportAllocs()
	for b.Loop() {
		if f.In(pkt, clock).Allow {
			b.Fatal("allowed")
		}
	}
}

func BenchmarkSet(b *testing.B) {
	for _, rules := range []int{10, 10000} {
		b.Run(fmt.Sprintf("peers=10000/rules=%d", rules), func(b *testing.B) {
			f := New(Options{})
			c := bigMesh(10000, rules)
			b.ReportAllocs()
			for b.Loop() {
				f.Set(c, clock)
			}
		})
	}
}

func BenchmarkParallel(b *testing.B) {
	f := New(Options{})
	c := bigMesh(10000, 1000)
	f.Set(c, clock)
	src := c.Peers[77].Addrs[0].String()
	to, back := ip(src, v4, udp(5000, 53, 1200)), ip(v4, src, udp(53, 5000, 1200))
	open(b, f.In, to, ByRule)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			f.In(to, clock)
			f.Out(back, clock)
		}
	})
}

func open(b *testing.B, judge func([]byte, time.Time) Verdict, pkt []byte, want Reason) {
	b.Helper()
	expect(b, judge(pkt, clock), want)
}

// BenchmarkExtensionChain refuses a chain as long as the smallest IPv6 link lets it be.
func BenchmarkExtensionChain(b *testing.B) {
	body, next := tcp(5000, 22, syn).body, uint8(protoTCP)
	for len(body) < 1200 {
		body, next = append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, body...), protoDestOpts
	}
	f, pkt := New(Options{}), ip6(a6, v6, next, body)
	b.ReportAllocs()
	for b.Loop() {
		f.In(pkt, t0)
	}
}

// BenchmarkBuild compiles what one class may send to another when every one of the rules is about them.
func BenchmarkBuild(b *testing.B) {
	for _, ranges := range []string{"ports", "all"} {
		b.Run(ranges, func(b *testing.B) {
			c := bigMesh(2, 0)
			for i := range 10000 {
				pr := anyPort
				if ranges == "ports" {
					pr = ports(uint16(i * 6))
				}
				c.View.Rules = append(c.View.Rules, rule(1, acl.Accept, "*", "v", pr))
			}
			f := New(Options{})
			f.Set(c, clock)
			s := f.snap.Load()
			at := s.locate(&addr{0, v4in6 | 100<<24 | 65<<16})
			here := addrOf(netip.MustParseAddr(v4))
			for b.Loop() {
				s.build(at.src, s.locate(&here).hdst, clock.UnixNano())
			}
		})
	}
}

// BenchmarkBaseline is what others do, on the same packets: the obvious scan of all rules for each new flow, and a map
// of flows under a lock, which knows neither windows nor time. Figures of the filter are ratios to these.
func BenchmarkBaseline(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("scan/rules=%d", rules), func(b *testing.B) {
			c := bigMesh(10000, rules)
			owner, members := map[netip.Addr]acl.NodeID{}, map[string]map[acl.NodeID]bool{}
			for i := range c.Peers {
				owner[c.Peers[i].Addrs[0]] = c.Peers[i].ID
			}
			for name, s := range c.View.Sets {
				members[name] = map[acl.NodeID]bool{}
				for _, id := range s.Nodes {
					members[name][id] = true
				}
			}
			pkt := ip(c.Peers[77].Addrs[0].String(), v4, udp(5000, 53, 100))
			for b.Loop() {
				src, dst, proto, _ := Tuple(pkt)
				if scan(c, members, owner[src.Addr()], proto, dst.Port()) == nil {
					b.Fatal("denied")
				}
			}
		})
	}
	b.Run("map", func(b *testing.B) {
		type key struct {
			src, dst netip.AddrPort
			proto    uint8
		}
		var mu sync.Mutex
		flows, pkt := map[key]*flow{}, ip(a4, v4, tcpSeg(5000, 443, ackFlag, 1000, 5000, string(make([]byte, 1200))))
		for b.Loop() {
			src, dst, proto, _ := Tuple(pkt)
			mu.Lock()
			fl := flows[key{src, dst, proto}]
			if fl == nil {
				fl = &flow{}
				flows[key{src, dst, proto}] = fl
			}
			fl.bytes[theirs] += uint64(len(pkt))
			mu.Unlock()
		}
	})
}

func scan(c *Config, members map[string]map[acl.NodeID]bool, src acl.NodeID, proto uint8, port uint16) *acl.Rule {
	for i := range c.View.Rules {
		r := &c.View.Rules[i]
		if !hasProto(r, proto) || !slices.ContainsFunc(r.Src, func(s string) bool { return c.View.Sets[s].Any || members[s][src] }) {
			continue
		}
		for _, t := range r.Dst {
			if slices.ContainsFunc(t.Ports, func(p acl.PortRange) bool { return p.Contains(port) }) {
				return r
			}
		}
	}
	return nil
}

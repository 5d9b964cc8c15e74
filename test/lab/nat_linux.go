package lab

import (
	"fmt"
	"strings"
)

// chains are what the packet filters of kinds differ in, as statements of nftables.
type chains struct {
	pre, post, learn string // of IPv4's NAT
	post6            string // of IPv6's
	input, forward   string
}

// nat is the packet filter of a router of some kind, as an nftables script. Every router tracks connections; the kinds
// differ in the port that a mapping gets and in who may use it.
//
//	wan in ─ pre: forwarded ports; who the kind lets in ─ forward: known, from inside, or let in ─ lan
//	lan in ─ forward ─ post: the outside port ─ learn: which port is whose ─ wan
func nat(kind string, wan string) string {
	c := chains{post: `oifname "wan" masquerade`, input: `iifname "wan" ct state new drop`}
	if strings.HasPrefix(kind, "provider") {
		c.forward = `iifname != "wan" accept`
	}
	if !c.usual(kind, wan) && !c.unusual(kind, wan) {
		panic(fmt.Sprintf("lab: no kind %q", kind))
	}
	return fmt.Sprintf(`
table ip nat {
 map ours { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 60s; }
 set met { type inet_service . ipv4_addr; flags dynamic,timeout; timeout 60s; }
 map forwarded { type inet_service : ipv4_addr . inet_service; }
 chain pre { type nat hook prerouting priority dstnat;
  iifname "wan" meta l4proto udp dnat ip to udp dport map @forwarded
  %s
 }
 chain post { type nat hook postrouting priority srcnat;
  %s
 }
 chain learn { type filter hook postrouting priority 110;
  %s
 }
}
table ip6 nat {
 chain post { type nat hook postrouting priority srcnat;
  %s
 }
}
table inet filter {
 set mappings { type ipv4_addr; flags dynamic; size 1024; }
 set disliked { type ipv4_addr; flags dynamic,timeout; timeout 30s; }
 set counted { type ipv4_addr; flags dynamic,timeout; timeout 30s; }
 chain input { type filter hook input priority filter;
  ct state established,related accept
  meta l4proto ipv6-icmp accept
  %s
 }
 chain forward { type filter hook forward priority filter; policy drop;
  %s
  ct state established,related accept
  iifname "lan" accept
  ct status dnat accept
 }
}
`, c.pre, c.post, c.learn, c.post6, c.input, c.forward)
}

const (
	toUDP = `oifname "wan" meta l4proto udp `
	inUDP = `iifname "wan" meta l4proto udp `
	// Who was sent to is remembered by these, since a port that conntrack has mapped lets in only its own far end.
	remember = toUDP + `ct direction original update @ours { udp sport : ct original ip saddr . ct original proto-src }`
	anybody  = inUDP + `dnat ip to udp dport map @ours`
	met      = toUDP + `update @met { udp sport . ip daddr }`
	byMet    = inUDP + `udp dport . ip saddr @met dnat ip to udp dport map @ours`
)

// usual are the chains of Kinds.
func (c *chains) usual(kind, wan string) bool {
	switch kind {
	case "easy", "cgn", "cgn+hp", "v6", "dual", "provider", "home", "isolated", "twin", "short", "brief", "small": // a provider's is of many customers, who cannot meet at its outside
	case "easyopen", "provider+open":
		c.input = ""
	case "fullcone":
		c.learn, c.pre = remember, anybody
	case "addrrestr":
		c.learn, c.pre = remember+"\n"+met, byMet
	case "hard", "provider+hard":
		c.first(toUDP + "masquerade fully-random")
	case "hardblk":
		c.first(toUDP + "masquerade to :20000-21023 fully-random")
	case "hardseq":
		c.first(toUDP + "snat to " + wan + " : numgen inc mod 1000 map " + ports(30000, 1000, 1))
	case "blocked":
		c.forward = "iifname \"lan\" meta l4proto != tcp drop\niifname \"lan\" tcp dport != 443 drop"
	case "provider+hp", "isolhp":
		c.learn = remember
		c.pre = "ip daddr " + wan + " meta l4proto udp dnat ip to udp dport map @ours"
		c.post += "\nct status dnat oifname != \"wan\" iifname != \"wan\" snat to " + wan
	default:
		return false
	}
	return true
}

// unusual are the chains of MoreKinds.
func (c *chains) unusual(kind, wan string) bool {
	switch kind {
	case "easyrand":
		c.first(hashed(wan, "ip saddr . udp sport"))
	case "hardaddr":
		c.first(hashed(wan, "ip saddr . udp sport . ip daddr"))
		c.learn, c.pre = remember+"\n"+met, byMet
	case "hardshort":
		c.first(toUDP + "masquerade fully-random")
	case "hardfree":
		c.first(toUDP + "masquerade fully-random")
		c.learn, c.pre = remember, anybody
	case "hardseq2":
		c.first(toUDP + "snat to " + wan + " : numgen inc mod 1000 map " + ports(30000, 1000, 2))
	case "hardblk64":
		c.first(toUDP + "masquerade to :20032-20095 fully-random")
	case "pool", "hardpool": // an address for each far address, of four
		at := wan[:strings.LastIndexByte(wan, '.')+1]
		pool := fmt.Sprintf("jhash ip daddr mod 4 seed 0x7 map { 0 : %s, 1 : %s201, 2 : %s202, 3 : %s203 }", wan, at, at, at)
		if kind == "hardpool" {
			pool += " fully-random"
		}
		c.first(toUDP + "snat to " + pool)
	case "firewall": // no NAT
		c.post = ""
	case "dualhard":
		c.first(toUDP + "masquerade fully-random")
	case "nat66":
		c.post6 = `oifname "wan" masquerade`
	case "ports":
		c.forward = `iifname "lan" udp dport != { 53, 443, 3478 } drop`
	case "quota":
		c.first(toUDP + "masquerade fully-random")
		c.forward = `iifname "lan" meta l4proto udp ct state new add @mappings { ip saddr ct count over 96 } drop`
	case "wary":
		c.input = inUDP + "ct state new add @counted { ip saddr limit rate over 20/second burst 20 packets } add @disliked { ip saddr } drop\n" + c.input
		c.forward = inUDP + "ip saddr @disliked drop"
	default:
		return c.rare(kind, wan)
	}
	return true
}

// rare are the chains of those WorldKinds that are rarer still, and of PairKinds.
func (c *chains) rare(kind, wan string) bool {
	switch kind {
	case "addrport":
		c.first(hashed(wan, "ip saddr . udp sport . ip daddr"))
	case "addrfree":
		c.first(hashed(wan, "ip saddr . udp sport . ip daddr"))
		c.learn, c.pre = remember, anybody
	case "portaddr":
		c.first(toUDP + "masquerade fully-random")
		c.learn, c.pre = remember+"\n"+met, byMet
	case "ecmp":
		at := wan[:strings.LastIndexByte(wan, '.')+1]
		c.first(toUDP + fmt.Sprintf("snat to jhash ip daddr . udp dport mod 2 seed 0x7 map { 0 : %s, 1 : %s201 }", wan, at))
	case "strict":
		c.input = inUDP + "ct state new add @counted { ip saddr limit rate over 1/minute burst 10 packets } add @disliked { ip saddr timeout 60s } drop\n" + c.input
		c.forward = inUDP + "ip saddr @disliked drop"
	case "newflows":
		c.forward = `iifname "lan" meta l4proto udp ct state new limit rate over 10/second burst 10 packets drop`
	case "sixudp":
		c.forward = `iifname "lan" meta nfproto ipv4 meta l4proto udp drop`
	case "blocked6":
		c.forward = "iifname \"lan\" meta l4proto != tcp drop\niifname \"lan\" tcp dport != 443 drop"
	default:
		return false
	}
	return true
}

// hashed gives one port of many, by a hash: the same whenever these are the same.
func hashed(wan, of string) string {
	return toUDP + "snat to " + wan + " : jhash " + of + " mod 4000 map " + ports(20000, 4000, 11)
}

// first puts a statement before those that give outside ports.
func (c *chains) first(statement string) { c.post = statement + "\n" + c.post }

// ports is an anonymous map from 0, 1, 2 … to count ports, so far apart.
func ports(from, count, step int) string {
	pairs := make([]string, count)
	for i := range pairs {
		pairs[i] = fmt.Sprintf("%d : %d", i, from+i*step)
	}
	return "{ " + strings.Join(pairs, ", ") + " }"
}

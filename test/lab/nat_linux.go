package lab

import (
	"fmt"
	"strings"
)

// nat is the packet filter of a router of some kind, as an nftables script. Every router tracks connections; the kinds
// differ in the port that a mapping gets and in who may use it.
//
//	wan in ─ pre: forwarded ports; who the kind lets in ─ forward: known, from inside, or let in ─ lan
//	lan in ─ forward ─ post: the outside port ─ learn: which port is whose ─ wan
func nat(kind string, wan string) string {
	const udp = `oifname "wan" meta l4proto udp `
	post := `oifname "wan" masquerade`
	pre, forward, learn := "", "", ""
	input := `iifname "wan" ct state new drop`
	// Who was sent to is remembered by these, since a port that conntrack has mapped lets in only its own far end.
	remember := udp + `ct direction original update @ours { udp sport : ct original ip saddr . ct original proto-src }`
	switch kind {
	case "easy", "cgn", "cgn+hp", "v6", "dual":
	case "easyopen":
		input = ""
	case "fullcone":
		learn = remember
		pre = `iifname "wan" meta l4proto udp dnat ip to udp dport map @ours`
	case "addrrestr":
		learn = remember + "\n" + udp + `update @met { ip daddr }`
		pre = `iifname "wan" ip saddr @met meta l4proto udp dnat ip to udp dport map @ours`
	case "hard":
		post = udp + "masquerade fully-random\n" + post
	case "hardblk":
		post = udp + "masquerade to :20000-21023 fully-random\n" + post
	case "hardseq":
		post = udp + "snat to " + wan + " : numgen inc mod 1000 map " + ports(30000, 1000) + "\n" + post
	case "blocked":
		forward = "iifname \"lan\" meta l4proto != tcp drop\niifname \"lan\" tcp dport != 443 drop"
	case "provider": // easy, of many customers, who cannot meet at its outside
	case "provider+hp":
		learn = remember
		pre = "ip daddr " + wan + " meta l4proto udp dnat ip to udp dport map @ours"
		post += "\nct status dnat oifname != \"wan\" iifname != \"wan\" snat to " + wan
		forward = `iifname != "wan" accept`
	default:
		panic(fmt.Sprintf("lab: no kind %q", kind))
	}
	if strings.HasPrefix(kind, "provider") {
		forward = `iifname != "wan" accept`
	}
	return fmt.Sprintf(`
table ip nat {
 map ours { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 60s; }
 set met { type ipv4_addr; flags dynamic,timeout; timeout 60s; }
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
table inet filter {
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
`, pre, post, learn, input, forward)
}

// ports is an anonymous map from 0, 1, 2 … to count ports.
func ports(from, count int) string {
	pairs := make([]string, count)
	for i := range pairs {
		pairs[i] = fmt.Sprintf("%d : %d", i, from+i)
	}
	return "{ " + strings.Join(pairs, ", ") + " }"
}

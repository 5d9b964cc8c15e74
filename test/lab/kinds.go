package lab

import "fmt"

// Kinds are the places a machine can be in, for [Internet.Pair].
//
//	none      in the core, with no router before it
//	easy      the usual home router: one mapping for all far ends, but only those sent to get in
//	easyopen  the same without a firewall on the router itself, as a Linux box with a bare masquerade rule
//	fullcone  one mapping, and anybody gets in
//	addrrestr one mapping, and any port of an address sent to gets in
//	hard      a mapping for each far end, at a random port ("symmetric")
//	hardseq   a mapping for each far end, at the next port
//	hardblk   a mapping for each far end, at one of 1024 ports in a row
//	cgn       easy behind a provider's NAT that is easy
//	cgn+hp    easy behind a provider's NAT that lets anybody in, its own customers too ("hairpinning")
//	blocked   no UDP at all
//	v6        IPv6 only, behind a firewall
//	dual      easy, and IPv6 behind a firewall
var Kinds = []string{
	"none", "easy", "easyopen", "fullcone", "addrrestr", "hard", "hardseq", "hardblk", "cgn", "cgn+hp", "blocked", "v6", "dual",
}

var (
	easy = NAT{Filtering: AddressAndPortDependent}
	hard = NAT{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent, Ports: Random}
)

// Home is the router of a kind in [Kinds].
func Home(kind string) RouterConfig {
	n := easy
	switch kind {
	case "easy", "cgn", "cgn+hp":
	case "easyopen":
		n.Trap = true
	case "fullcone":
		n.Filtering = EndpointIndependent
	case "addrrestr":
		n.Filtering = AddressDependent
	case "hard":
		n = hard
	case "hardseq":
		n = hard
		n.Ports = Sequential
	case "hardblk":
		n = hard
		n.Ports = Block
	case "blocked":
		return RouterConfig{NAT: n, BlockUDP: true}
	case "v6":
		return RouterConfig{NoIPv4: true, IPv6: true}
	case "dual":
		return RouterConfig{NAT: n, IPv6: true}
	default:
		panic(fmt.Sprintf("lab: no kind %q", kind))
	}
	return RouterConfig{NAT: n}
}

// Provider is the provider's router of a kind, if it has one.
func Provider(kind string) (RouterConfig, bool) {
	switch kind {
	case "cgn":
		return RouterConfig{NAT: easy, CGN: true}, true
	case "cgn+hp":
		return RouterConfig{NAT: NAT{Hairpin: true}, CGN: true}, true
	}
	return RouterConfig{}, false
}

// Pair adds two machines in places of these kinds; the router is nil for none. Two of one provider's customers share
// its NAT.
func (n *Internet) Pair(a, b string) (ma, mb *Machine, ra, rb *Router) {
	var shared *Router
	place := func(kind string) (*Machine, *Router) {
		if kind == "none" {
			return n.Machine(), nil
		}
		at := &n.segment
		if cfg, ok := Provider(kind); ok {
			if shared == nil || a != b {
				shared = n.Router(cfg)
			}
			at = &shared.segment
		}
		r := at.Router(Home(kind))
		return r.Machine(), r
	}
	ma, ra = place(a)
	mb, rb = place(b)
	return ma, mb, ra, rb
}

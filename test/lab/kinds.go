package lab

import (
	"fmt"
	"time"
)

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

// MoreKinds are places that are less usual.
//
//	easyrand  easy, at a random port
//	short     easy, and forgets in 5 s what nobody uses
//	hardaddr  a mapping for each far address, at a random port, any port of which gets in
//	hardfree  a mapping for each far end, at a random port, and anybody gets in
//	hardshort hard, and forgets in 5 s
//	opencgn   easyopen behind a provider's NAT that is one too
//	hardcgn   easy behind a provider's NAT that is hard
//	hardhard  hard behind a provider's NAT that is hard
//	pool      easy, but with one of several outside addresses for each far address ("arbitrary pooling", RFC 4787 section
//	          4.1): in memory of two, both of which STUN servers see; of four on kernels, where luck decides
var MoreKinds = []string{"easyrand", "short", "hardaddr", "hardfree", "hardshort", "opencgn", "hardcgn", "hardhard", "pool"}

// WorldKinds are MoreKinds of a [World] only.
//
//	hardseq2  hardseq, but every other port
//	hardblk64 hardblk, but of 64 ports
//	hardpool  pool, at random ports
//	firewall  a public address behind a firewall; no NAT
//	nat66     IPv6 only, behind a NAT
//	dualhard  hard, and IPv6 behind a firewall
//	ports     easy, and UDP gets out to ports 53, 443 and 3478 only
//	quota     hard, and 96 mappings at most
//	wary      easy, and has nothing to do for 30 s with an address that sends many packets that nobody asked for
//	strict    easy, and has nothing to do for 60 s with an address that sent more than ten of them
//	addrport  a mapping for each far address, at a random port; only those sent to get in
//	addrfree  the same, and anybody gets in
//	portaddr  hard, and any port of an address sent to gets in
//	ecmp      easy, with one of two outside addresses for each far end, as two uplinks that share the load
//	brief     easy, and forgets in 1 s
//	newflows  easy, and no more than 10 new far ends a second
//	small     easy, and no packet of UDP above 1000 bytes
//	sixudp    dual, but UDP gets out by IPv6 only
//	blocked6  IPv6 only, and nothing but TCP to port 443 gets out
//	docker    easyopen, behind a home's router: a container
//	cgn3      easy behind two provider's NATs in a row
var WorldKinds = []string{
	"hardseq2", "hardblk64", "hardpool", "firewall", "nat66", "dualhard", "ports", "quota", "wary", "strict",
	"addrport", "addrfree", "portaddr", "ecmp", "brief", "newflows", "small", "sixudp", "blocked6", "docker", "cgn3",
}

// PairKinds are places of a [World] that matter for two of them only.
//
//	home      easy, both on one LAN
//	isolated  easy, both on one LAN whose switch lets nobody through but to the router
//	isolhp    the same, and the router sends back in what is for its outside address, from there (RFC 4787, REQ-9)
//	twin      easy, at the same address of the same network as the other
var PairKinds = []string{"home", "isolated", "isolhp", "twin"}

// NetKinds are MoreKinds of an [Internet] only.
//
//	seqdown   hardseq, but downwards
//	seqstep   hardseq, but every 32nd port
//	seqshared hardseq, and up to 20 ports are taken by others between two
//	blkshift  hardblk, but of another block each minute
//	hard16k   hard, but at one of 16384 ports in a row
//	pool4     pool of four, of which STUN servers see two
var NetKinds = []string{"seqdown", "seqstep", "seqshared", "blkshift", "hard16k", "pool4"}

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
	case "seqdown", "seqstep", "seqshared":
		n = hard
		n.Ports = Sequential
		n.Step = map[string]uint16{"seqdown": 65535, "seqstep": 32}[kind]
		if kind == "seqshared" {
			n.Others = 20
		}
	case "blkshift":
		n = hard
		n.Ports, n.Shift = Block, time.Minute
	case "hard16k":
		n = hard
		n.Ports, n.Size = Block, 1<<14
	case "quota":
		n = hard
		n.Quota = 96
	case "hardpool":
		n = hard
		n.Pool = 2
	case "easyrand":
		n.Ports = Random
	case "short":
		n.Timeout = 5 * time.Second
	case "hardaddr":
		n = NAT{Mapping: AddressDependent, Filtering: AddressDependent, Ports: Random}
	case "hardfree":
		n = NAT{Mapping: AddressAndPortDependent, Ports: Random}
	case "hardshort":
		n = hard
		n.Timeout = 5 * time.Second
	case "opencgn":
		n.Trap = true
	case "pool":
		n.Pool = 2
	case "pool4":
		n.Pool = 4
	case "hardcgn":
	case "hardhard":
		n = hard
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
	case "opencgn":
		n := easy
		n.Trap = true
		return RouterConfig{NAT: n, CGN: true}, true
	case "hardcgn", "hardhard":
		return RouterConfig{NAT: hard, CGN: true}, true
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

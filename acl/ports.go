package acl

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// IANA protocol numbers that rules treat specially.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

// DefaultProtos are the protocols of a rule that names none.
var DefaultProtos = []uint8{protoICMP, protoTCP, protoUDP, protoICMPv6}

var protoNames = map[string]uint8{
	"icmp": protoICMP, "igmp": 2, "ipv4": 4, "ip-in-ip": 4, "tcp": protoTCP, "egp": 8, "igp": 9, "udp": protoUDP,
	"gre": 47, "esp": 50, "ah": 51, "ipv6-icmp": protoICMPv6, "sctp": protoSCTP, "fc": 133,
}

// wordError is an error in one word of a file; the parser adds the place.
type wordError struct {
	class, hint string
	msg         string
}

func (e *wordError) Error() string { return e.msg }

// parsePorts reads the ports of a destination.
//
//	ports = "*" | entry { "," entry }      entry = n | n "-" n      n = 0…65535, decimal, no sign
//
// A lone 0 is refused: it reads like "any" and is not.
func parsePorts(s string) ([]PortRange, error) {
	if s == "*" {
		return []PortRange{AllPorts}, nil
	}
	var out []PortRange
	for _, e := range strings.Split(s, ",") {
		r, err := parsePortEntry(e)
		if err != nil {
			return nil, &wordError{class: ClassBadPort, msg: err.Error(), hint: "ports are *, a number, a range such as 8000-8099, or a comma list of these"}
		}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out, nil
}

func parsePortEntry(e string) (PortRange, error) {
	if e == "*" {
		return AllPorts, nil
	}
	a, b, isRange := strings.Cut(e, "-")
	first, ok := parsePort(a)
	if !ok {
		return PortRange{}, fmt.Errorf("port range %q: %q is not a port (0-65535)", e, a)
	}
	if !isRange {
		if first == 0 {
			return PortRange{}, fmt.Errorf("port range %q: first port must be more than 0; use * for all ports", e)
		}
		return PortRange{first, first}, nil
	}
	last, ok := parsePort(b)
	if !ok {
		return PortRange{}, fmt.Errorf("port range %q: %q is not a port (0-65535)", e, b)
	}
	if last == 0 {
		return PortRange{}, fmt.Errorf("port range %q: first port must be more than 0; use * for all ports", e)
	}
	if last < first {
		return PortRange{}, fmt.Errorf("port range %q runs backwards", e)
	}
	return PortRange{first, last}, nil
}

func parsePort(s string) (uint16, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}

// parseProto reads an IP protocol: a name in any case, or 1-255.
func parseProto(s string) (uint8, error) {
	if n, ok := protoNames[strings.ToLower(s)]; ok {
		return n, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 || s[0] < '1' || s[0] > '9' {
		return 0, &wordError{class: ClassBadProto, msg: fmt.Sprintf("%q is not a protocol", s), hint: orElse(didYouMean(s, names(protoNames)), "leave the protocol out for TCP, UDP and ICMP; or use a name such as tcp, or a number 1-255")}
	}
	return uint8(n), nil
}

// hasPorts reports whether a protocol's packets carry ports.
func hasPorts(proto uint8) bool { return proto == protoTCP || proto == protoUDP || proto == protoSCTP }

// checkProtoPorts refuses ports on a protocol that has none: such a rule would never match.
func checkProtoPorts(proto uint8, ports []PortRange) error {
	for _, r := range ports {
		if r != AllPorts && !hasPorts(proto) {
			return &wordError{class: ClassProtoPort, msg: fmt.Sprintf("protocol %s has no ports, so %s cannot match", protoName(proto), r), hint: "use * for the ports, or a protocol that has ports (tcp, udp, sctp)"}
		}
	}
	return nil
}

// ParseProto reads an IP protocol as a policy does: a name in any case, or 1-255.
func ParseProto(s string) (uint8, error) { return parseProto(s) }

// ProtoName is a protocol's name, or its number.
func ProtoName(n uint8) string { return protoName(n) }

// HasPorts reports whether a protocol's packets carry ports.
func HasPorts(proto uint8) bool { return hasPorts(proto) }

// protoName is a protocol's name, or its number.
func protoName(n uint8) string {
	for _, k := range []string{"icmp", "igmp", "ipv4", "tcp", "egp", "igp", "udp", "gre", "esp", "ah", "ipv6-icmp", "sctp", "fc"} {
		if protoNames[k] == n {
			return k
		}
	}
	return strconv.Itoa(int(n))
}

// String is the range as a policy writes it.
func (r PortRange) String() string {
	switch {
	case r == AllPorts:
		return "*"
	case r.First == r.Last:
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

func orElse(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

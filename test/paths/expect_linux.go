package main

import "slices"

// ways is how a kind gives its outside ports: "one" for all far ends, or "random", "seq", "blk" for each another; "?" if
// luck has a part whatever one does.
func ways(kind string) string {
	switch kind {
	case "hard", "hardaddr", "hardfree", "hardshort", "hardcgn", "hardhard", "dualhard", "addrport", "addrfree", "portaddr":
		return "random"
	case "hardseq", "hardseq2":
		return "seq"
	case "hardblk", "hardblk64":
		return "blk"
	case "pool", "hardpool", "quota", "wary", "strict", "ecmp", "newflows", "isolated":
		return "?"
	}
	return "one"
}

// expected is how two kinds are to reach each other: "direct", "guess" (ports must be guessed, so luck has a part, and
// it takes longer), "relay", or "any" where only luck decides.
func expected(a, b string) string {
	is := func(kinds ...string) bool { return slices.Contains(kinds, a) || slices.Contains(kinds, b) }
	six := func(k string) bool { return slices.Contains([]string{"v6", "dual", "nat66", "dualhard", "sixudp"}, k) }
	waysA, waysB := ways(a), ways(b)
	switch {
	case six(a) && six(b):
		return "direct"
	case is("blocked", "v6", "nat66", "ports", "sixudp", "blocked6"):
		return "relay"
	case a == b && slices.Contains([]string{"cgn", "opencgn", "hardcgn", "hardhard", "cgn3"}, a): // one provider's customers, and it does not send back in
		return "relay"
	case waysA == "one" && waysB == "one":
		return "direct"
	case waysA == "random" && waysB != "one" || waysB == "random" && waysA != "one":
		return "relay"
	case (waysA == "one" || waysB == "one") && is("none", "fullcone", "addrrestr"):
		return "direct"
	case waysA == "?" || waysB == "?":
		return "any"
	}
	return "guess"
}

package main

import "slices"

// expected is how two kinds are to reach each other: "direct", "guess" (ports must be guessed, so luck has a part, and
// it takes longer), or "relay".
func expected(a, b string) string {
	is := func(kinds ...string) bool { return slices.Contains(kinds, a) || slices.Contains(kinds, b) }
	hard := []string{"hard", "hardseq", "hardblk"}
	hardA, hardB := slices.Contains(hard, a), slices.Contains(hard, b)
	switch {
	case is("blocked"):
		return "relay"
	case is("v6"):
		if other := map[bool]string{true: b, false: a}[a == "v6"]; other == "v6" || other == "dual" {
			return "direct"
		}
		return "relay"
	case a == "cgn" && b == "cgn": // one provider's customers, and it does not send back in
		return "relay"
	case hardA && hardB:
		if a == "hard" || b == "hard" {
			return "relay"
		}
		return "guess"
	case hardA || hardB:
		if is("none", "fullcone", "addrrestr") {
			return "direct"
		}
		return "guess"
	}
	return "direct"
}

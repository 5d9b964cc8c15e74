package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// report is docs/paths.md.
func report(results []result, parallel int) string {
	var b strings.Builder
	b.WriteString(head)
	fmt.Fprintf(&b, "\n%s, %d CPUs, %d cases at once; load at the end, other work of the machine included: %s. Times are in milliseconds, each\nfrom a single run.\n", runtime.GOOS, runtime.NumCPU(), parallel, load())
	cold := map[string]result{}
	for _, r := range results {
		if strings.Count(r.Name, "/") == 1 {
			cold[r.Name] = r
		}
	}
	if len(cold) > 0 {
		b.WriteString("\n## Direct both ways\n\nThe row speaks first. A number is the time from its first datagram until both nodes send directly; `relay` is for good.\n\n")
		grid(&b, cold, func(r result) string {
			if r.DirectA == 0 || r.DirectB == 0 {
				return "relay"
			}
			return millis(max(r.DirectA, r.DirectB))
		})
		b.WriteString("\n## First echo\n\nFrom the first datagram, WireGuard's handshake included, until its answer: by relay, or directly where that is sooner.\n\n")
		grid(&b, cold, func(r result) string { return millis(r.First) })
		lessUsual(&b, cold)
		summary(&b, cold)
		beside(&b, cold)
	}
	happenings(&b, results)
	b.WriteString(tail)
	return b.String()
}

const head = `# Paths

How two nodes reach each other through the networks between them, measured: the real binary, on real kernels, between
network namespaces that are homes, NATs, providers and an internet ([test/lab](../test/lab/doc.go)). Two edges of that
internet are 20 ms apart, one way, so a ping takes 40 ms directly and 80 by relay. Make it anew with

    go run ./test/paths -o docs/paths.md

It needs Linux, root, iproute2, nftables and /dev/net/tun, and takes half an hour and more. ` + "`go test ./test/paths`" + ` is the part of it
that every change must pass, with limits. The same pairs are run in memory and in fake time by ` + "`go test ./node/bind -run TestMatrix`" + `,
where a thousand seeds cost little: HEDGE_MATRIX_SEEDS=100 asks for more than one.

| kind | what it is |
|---|---|
| none | a public address, no NAT |
| easy | a home router: one outside port for all far ends; only those sent to get in |
| easyopen | the same without a firewall on the router itself: a packet that comes too early spoils the port (conntrack clash) |
| fullcone, addrrestr | one outside port; anybody gets in, or any port of an address sent to |
| hard | an outside port of its own for each far end, at random ("symmetric") |
| hardseq, hardblk | the same with ports in sequence, or from a block of 1024 |
| cgn, cgn+hp | easy, behind a provider's NAT that is shared by both; without and with hairpinning |
| blocked | nothing but TCP to port 443 gets out |
| v6 | IPv6 only, behind a firewall |
| dual | easy, and IPv6 behind a firewall |
| easyrand | easy, at a random port |
| short, hardshort | easy and hard, and what nobody uses for 5 s is forgotten |
| hardaddr | an outside port of its own for each far address, any port of which gets in |
| hardfree | hard, and anybody gets in |
| hardseq2, hardblk64 | hardseq with every other port, hardblk with 64 ports |
| opencgn, hardcgn, hardhard | easyopen behind a provider's NAT that is one too; easy behind one that is hard; hard behind one that is hard |
| pool, hardpool | easy and hard, with one of four outside addresses for each far address |
| firewall | a public address behind a firewall, no NAT |
| nat66 | IPv6 only, behind a NAT |
| dualhard | hard, and IPv6 behind a firewall |
| ports | easy, but UDP gets out to ports 53, 443 and 3478 only |
| quota | hard, and no more than 96 mappings |
| wary | easy, but an address that sends many packets that nobody asked for is shut out for 30 s |
`

const tail = `
## How to read it

* Around a switch packets go both ways, and WireGuard drops the copies. The datagrams lost above are lost before it, where
  the machine is short of time.
* hard x hard with ports all over the range stays on the relay, or on a peer relay if the policy grants one (none is in
  these tables), and ` + "`hedge status --why`" + ` says so: one would have to guess
  54,000 times on each side for an even chance. So does hard with hardblk, where 6,800 on each side make an even chance and
  14,100 make 95 in 100, and hard with hardseq, where it takes 44,700: each of the ports in sequence is open for one far end.
* Where ports are guessed, a run may fail by luck: with 256 sockets and 1024 guesses two in a hundred do, of those where both
  NATs are hard three or four, and the pair stays on the relay until the next attempt, 20 s later, and then every 10 minutes.
* Two customers of one provider that does not send back in (cgn with cgn) stay on the relay: the address by which they could
  meet inside is known to nobody but their routers.
* A NAT that has several outside addresses, and takes any of them for a new far end (pool, hardpool), is met where the
  address that it takes towards the peer is one of those that STUN servers saw; else the pair stays on the relay.
* Of two NATs in a row the outer one may be spoilt by early packets (opencgn): openers that die before it open nothing. A
  pair that does not meet at once meets by fresh sockets, half a second later, or three.
* One relay is enough to know a NAT by: it answers at a second port.
* The outage of an event is the longest time without any answer to a flow of 100 datagrams a second; the stream is TCP
  through the mesh, 4 kB every 50 ms, echoed.
`

// load is the system's load average over the last 1, 5 and 15 minutes.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(b)); err == nil && len(f) > 2 {
		return strings.Join(f[:3], " ")
	}
	return "not known"
}

func millis(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprint(d.Milliseconds())
}

// grid is a table of every kind against every kind.
func grid(b *strings.Builder, cold map[string]result, cell func(result) string) {
	fmt.Fprintf(b, "| | %s |\n|---%s|\n", strings.Join(lab.Kinds, " | "), strings.Repeat("|--:", len(lab.Kinds)))
	for _, x := range lab.Kinds {
		fmt.Fprintf(b, "| **%s** |", x)
		for _, y := range lab.Kinds {
			r, ok := cold[x+"/"+y]
			switch {
			case !ok:
				b.WriteString(" |")
			case r.Err != "":
				b.WriteString(" failed |")
			default:
				fmt.Fprintf(b, " %s |", cell(r))
			}
		}
		b.WriteString("\n")
	}
}

// lessUsual is a table of the less usual kinds against some others, both ways.
func lessUsual(b *strings.Builder, cold map[string]result) {
	kinds := slices.DeleteFunc(slices.Concat(lab.MoreKinds, lab.WorldKinds), func(k string) bool { _, ok := cold[k+"/"+k]; return !ok })
	if len(kinds) == 0 {
		return
	}
	b.WriteString("\n## Less usual places\n\nTime until direct both ways where the row speaks first / where the column does; the last column is two of the row's kind.\n\n")
	fmt.Fprintf(b, "| | %s | itself |\n|---%s|\n", strings.Join(partners, " | "), strings.Repeat("|--:", len(partners)+1))
	cell := func(name string) string {
		switch r, ok := cold[name]; {
		case !ok:
			return ""
		case r.Err != "":
			return "failed"
		case r.DirectA == 0 || r.DirectB == 0:
			return "relay"
		default:
			return millis(max(r.DirectA, r.DirectB))
		}
	}
	for _, k := range kinds {
		fmt.Fprintf(b, "| **%s** |", k)
		for _, p := range partners {
			fmt.Fprintf(b, " %s / %s |", cell(k+"/"+p), cell(p+"/"+k))
		}
		fmt.Fprintf(b, " %s |\n", cell(k+"/"+k))
	}
}

// group are the pairs of a sort, and how they did.
type group struct {
	name      string
	in        func(a, b string) bool
	tailscale string // the same, measured on it
	goal      string
}

func either(a, b, x, y string) bool { return a == x && b == y || a == y && b == x }

var groups = []group{
	{"easy x easy", func(a, b string) bool { return either(a, b, "easy", "easy") }, "5050 in 7 of 8 runs", "150"},
	{"dual x dual", func(a, b string) bool { return either(a, b, "dual", "dual") }, "5000", "150"},
	{"easyopen to easy", func(a, b string) bool { return a == "easyopen" && b == "easy" }, "42-129", "300"},
	{"easy to easyopen", func(a, b string) bool { return a == "easy" && b == "easyopen" }, "never (0 of 4)", "300"},
	{"easyopen x easyopen", func(a, b string) bool { return either(a, b, "easyopen", "easyopen") }, "", "300"},
	{"fullcone x hard", func(a, b string) bool { return either(a, b, "fullcone", "hard") }, "131-217", "150"},
	{"easy x hard", func(a, b string) bool { return either(a, b, "easy", "hard") }, "never (0 of 5)", "4000"},
	{"hardblk x hardblk, hardseq x hardseq", func(a, b string) bool { return a == b && (a == "hardblk" || a == "hardseq") }, "", "5000"},
	{"hard x hard", func(a, b string) bool { return either(a, b, "hard", "hard") }, "never (0 of 2)", "relay"},
	{"cgn x cgn, one provider", func(a, b string) bool { return either(a, b, "cgn", "cgn") }, "never (0 of 3)", "relay"},
	{"cgn+hp x cgn+hp", func(a, b string) bool { return either(a, b, "cgn+hp", "cgn+hp") }, "1-85", "100"},
	{"blocked x easy", func(a, b string) bool { return either(a, b, "blocked", "easy") }, "never (right)", "relay"},
	{"all that need no guess", func(a, b string) bool { return expected(a, b) == "direct" }, "", "150"},
	{"all that need a guess", func(a, b string) bool { return expected(a, b) == "guess" }, "", "5000"},
	{"all that cannot", func(a, b string) bool { return expected(a, b) == "relay" }, "", "relay"},
}

// spread is "least / median / most".
func spread(list []time.Duration) string {
	if len(list) == 0 {
		return "-"
	}
	slices.Sort(list)
	if len(list) == 1 {
		return millis(list[0])
	}
	return fmt.Sprintf("%s / %s / %s", millis(list[0]), millis(list[len(list)/2]), millis(list[len(list)-1]))
}

// beside sets groups of pairs beside what was measured on Tailscale.
func beside(b *strings.Builder, cold map[string]result) {
	b.WriteString("\n## Beside Tailscale\n\nleast / median / most of the pairs above. Tailscale's figures (commit de9ec7ee) were measured before, in namespaces with the\nsame NATs and delays, on a machine of the same sort; its first byte took 128-261 ms by relay.\n\n")
	b.WriteString("| pairs | runs | direct | first echo | direct both ways | goal | Tailscale, direct both ways |\n|---|--:|--:|--:|--:|--:|--:|\n")
	for _, g := range groups {
		n, direct := 0, 0
		var first, both []time.Duration
		for _, x := range lab.Kinds {
			for _, y := range lab.Kinds {
				r, ok := cold[x+"/"+y]
				if !ok || !g.in(x, y) || r.Err != "" {
					continue
				}
				n++
				first = append(first, r.First)
				if r.DirectA > 0 && r.DirectB > 0 {
					direct++
					both = append(both, max(r.DirectA, r.DirectB))
				}
			}
		}
		if n > 0 {
			fmt.Fprintf(b, "| %s | %d | %d | %s | %s | %s | %s |\n", g.name, n, direct, spread(first), spread(both), g.goal, g.tailscale)
		}
	}
}

// summary is what all cold cases have in common.
func summary(b *strings.Builder, cold map[string]result) {
	sent, lost, copies, late, moved, clean := 0, 0, 0, 0, 0, 0
	for _, r := range cold {
		if r.Err != "" {
			continue
		}
		sent, lost, copies, late = sent+r.Cold.Sent, lost+r.Cold.Lost, copies+r.Copies, late+r.Cold.Late
		if r.DirectA > 0 && r.DirectB > 0 {
			if moved++; r.Cold.Lost == 0 {
				clean++
			}
		}
	}
	fmt.Fprintf(b, "\nOf %d datagrams in all of these, from the first on, %d were lost, %d were overtaken by others, and %d arrived twice. Of the %d conversations\nthat moved to a direct path %d lost none.\n",
		sent, lost, late, copies, moved, clean)
}

// happenings are the events, with their outages.
func happenings(b *strings.Builder, results []result) {
	said := false
	for _, e := range slices.Concat(events, more) {
		for _, r := range results {
			pair, ok := strings.CutSuffix(r.Name, "/"+e.name)
			if !ok {
				continue
			}
			if !said {
				b.WriteString("\n## Events\n\nWhat happens to a while b answers it, the longest outage, the datagrams lost of those sent, the time until the path is\nagain what it is to be, and how long a TCP stream stood still. Beside it what Tailscale took on easy x easy, or with UDP blocked.\n\n")
				b.WriteString("| event | pair | outage | goal | lost | path again | stream stood | Tailscale's outage |\n|---|---|--:|--:|--:|--:|--:|--:|\n")
				said = true
			}
			if r.Err != "" {
				fmt.Fprintf(b, "| %s | %s | failed: %s | | | | | |\n", e.text, pair, r.Err)
				continue
			}
			stall := millis(r.Stall)
			if r.Broken != "" {
				stall = "broke"
			}
			back := millis(r.Back)
			if r.Back == 0 {
				back = "not in " + millis(max(e.watch, 6*time.Second))
			}
			goal := millis(e.outage)
			fmt.Fprintf(b, "| %s | %s | %s | %s | %d of %d | %s: %s | %s | %s |\n", e.text, pair, millis(r.Event.Gap), goal, r.Event.Lost, r.Event.Sent, wanted(e, r), back, stall, e.tailscale[pair])
		}
	}
}

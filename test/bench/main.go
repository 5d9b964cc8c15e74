package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/crowd"
	"github.com/hedge-mesh/hedge/test/bench/hosts"
	"github.com/hedge-mesh/hedge/test/bench/kid"
	"github.com/hedge-mesh/hedge/test/bench/process"
	"github.com/hedge-mesh/hedge/test/bench/relays"
)

const help = `Bench measures Hedge beside baselines, in turns, and prints figures and ratios as "median [least most]" of the rounds.
Compare ratios, they hold where figures do not; with ! those of which all rounds, six at least, agree on which is greater.

Sections, -only:
  netstack  two nodes in one process, on loopback; beside wireguard-go with its own netstack, two stacks without a tunnel,
            and what one core encrypts. Needs no privileges.
  scale     the same with as many rules and peers as -scale says
  known     memory of one node that knows 10,000 peers and rules, while 100 of the peers talk to it, and later
  hosts     the real binary between network namespaces; beside wireguard-go, the bare wire, and what -baselines names.
            Needs root, iproute2 and iperf3.
  relayed   the same where a relay is the only way, by TLS and by UDP, beside the direct one
  relay     hedge relay beside derper, which is built once, from the module proxy, outside this module
Worlds of hosts, -worlds (the first is compared with the others):
  hedge-tun, hedge-user   with an interface of the host; without rights, through the SOCKS5 proxy
  hedge-1280              hedge-tun on a wire that carries no more than that inside
  against-tun, against-user  the same of another build, -against
  wireguard-go, wireguard-wide, veth   MTU 1280; the longest packets that the wire takes; no tunnel
  and those of -baselines

Examples:
  bench -quick                                a first look, about two minutes
  bench -against main                         does my change win? both builds, in turns, five minutes
  bench -against main -rounds 10 -time 3s     the same, until the noise is small
  bench -against ./hedge-before -worlds hedge-user,against-user
  bench -only hosts -wire 9000 -worlds hedge-tun,wireguard-wide
  bench -only hosts -baselines others.hujson  beside other meshes on this machine; see test/bench/baselines.hujson

Flags:
`

// options is what the flags say.
type options struct {
	quick, markdown              bool
	only, worlds, scale, wire    []string
	against, hedge, json, others string
	rules, peers, rounds         int
	each                         time.Duration
	world, profile, allocs       string // by hand
}

// sections in the order in which they are made.
var sections = []string{"netstack", "scale", "known", "hosts", "relayed", "relay"}

func main() {
	kid.Main(jobs())
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	} else if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v; bench -help tells more\n", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for anything
	if o.world != "" {
		err = process.ByHand(ctx, o.world, o.rules, o.peers, o.profile, o.allocs)
	} else {
		err = work(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// jobs is what this program's kids do.
func jobs() map[string]func([]string) error {
	all := maps.Clone(process.Jobs)
	maps.Copy(all, hosts.Jobs)
	maps.Copy(all, relays.Jobs)
	maps.Copy(all, crowd.Jobs)
	maps.Copy(all, kid.Jobs)
	return all
}

// words is a flag that is a list, with commas.
type words struct{ list *[]string }

func (w words) String() string {
	if w.list == nil {
		return ""
	}
	return strings.Join(*w.list, ",")
}

func (w words) Set(s string) error {
	*w.list = strings.Split(s, ",")
	return nil
}

func parse(args []string) (o options, err error) {
	o = options{scale: []string{"10000", "100", "1"}, wire: []string{"1500", "9000"}}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprint(f.Output(), help)
		f.PrintDefaults()
	}
	f.BoolVar(&o.quick, "quick", false, "a first look: 2 short rounds, only what matters most")
	f.Var(words{&o.only}, "only", "only these `SECTIONS`, with commas (default all)")
	f.Var(words{&o.worlds}, "worlds", "only these `WORLDS` of hosts, with commas")
	f.StringVar(&o.against, "against", "", "`BUILD` to compare with: a binary of hedge, or a git revision, which is built; then only that, unless -only or -worlds say more")
	f.StringVar(&o.hedge, "hedge", "", "`BINARY` of hedge to measure (default: this tree's, which is built)")
	f.StringVar(&o.others, "baselines", "", "`FILE` of other tunnels, which are measured with hosts")
	f.IntVar(&o.rules, "rules", 1000, "`N` rules of Hedge's policy that concern both nodes")
	f.IntVar(&o.peers, "peers", 1, "`N` peers that each of Hedge's nodes knows")
	f.Var(words{&o.scale}, "scale", "`NUMBERS` of rules and peers for scale; the first is compared with the others")
	f.Var(words{&o.wire}, "wire", "`MTUS` of the wires between hosts")
	f.IntVar(&o.rounds, "rounds", 4, "how often each measurement is made, `N` times")
	f.DurationVar(&o.each, "time", 2*time.Second, "how long one takes; of iperf3 whole seconds, rounded up")
	f.StringVar(&o.json, "json", "", "write every figure to `FILE` as JSON")
	f.BoolVar(&o.markdown, "markdown", false, "print the tables as markdown")
	f.StringVar(&o.world, "world", "", "open one world of netstack by hand, requests on stdin: hedge, wireguard-go or stacks, its `NAME`")
	f.StringVar(&o.profile, "profile", "", "by hand: write a CPU profile of all requests to `FILE`")
	f.StringVar(&o.allocs, "allocs", "", "by hand: write a heap profile of all that was allocated to `FILE`")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	return o, o.complete(given, f.Args())
}

// complete fills in what follows from other flags, and says what makes no sense.
func (o *options) complete(given map[string]bool, rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("%q is not a flag", rest[0])
	}
	if o.quick {
		if !given["rounds"] {
			o.rounds = 2
		}
		if !given["time"] {
			o.each = 400 * time.Millisecond
		}
		if !given["wire"] {
			o.wire = []string{"1500"}
		}
	}
	if o.against != "" && !o.quick {
		if !given["rounds"] {
			o.rounds = 6
		}
		if !given["time"] {
			o.each = time.Second
		}
	}
	if o.only == nil {
		o.only = sections
		switch {
		case given["worlds"]:
			o.only = []string{"hosts"}
		case o.against != "":
			o.only = []string{"netstack", "hosts"}
		case o.quick:
			o.only = []string{"netstack", "hosts", "relay"}
		}
		if o.against != "" && !given["wire"] {
			o.wire = []string{"1500"}
		}
	}
	for _, s := range o.only {
		if !slices.Contains(sections, s) {
			return fmt.Errorf("no section is called %q; there are %s", s, strings.Join(sections, ", "))
		}
	}
	if o.rounds < 1 || o.each <= 0 || o.rules < 1 || o.peers < 1 {
		return errors.New("rounds, time, rules and peers are at least 1")
	}
	for _, l := range []struct {
		flag        string
		words       []string
		least, most int
	}{{"scale", o.scale, 1, 50_000}, {"wire", o.wire, 1420, 65_535}} {
		if _, err := numbers(l.words, l.least, l.most); err != nil {
			return fmt.Errorf("-%s: %w", l.flag, err)
		}
	}
	return nil
}

func numbers(list []string, least, most int) (out []int, err error) {
	for _, s := range list {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return nil, fmt.Errorf("%q is no number of %d to %d", s, least, most)
		}
		out = append(out, n)
	}
	return out, nil
}

func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node"
	"github.com/hedge-mesh/hedge/node/ostun"
)

// nodeFlags are those of hedge node, which hedge up and hedge init hand on to it.
type nodeFlags struct {
	name, inbound, proxy string
	tun, tunName         string
	port                 uint16
	portMapping          string
	guesses              int
	endpoints            []string
	timeout              time.Duration
	routingFlags
	set *pflag.FlagSet
}

// Ports to guess, 300 a second: with 384 sockets opened by the other side, the default meets 99 times of 100.
const (
	defaultGuesses = 1024
	mostGuesses    = 8192
)

// keptFlags are those that a node keeps from one run to the next; see remembered.
var keptFlags = append([]string{"inbound", "proxy", "port", "port-mapping", "port-guesses", "endpoint", "tun", "tun-name"}, liveFlags...)

func (f *nodeFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.name, "name", "", "`NAME` to ask for when joining (default: this host's name)")
	cmd.Flags().StringVar(&f.inbound, "inbound", "on", "`on` hands connections that the policy allows to the same port of 127.0.0.1; off refuses all")
	cmd.Flags().StringVar(&f.proxy, "proxy", node.DefaultProxy, "loopback `ADDR` of the SOCKS5 and HTTP proxy into the network; off for none")
	cmd.Flags().Uint16Var(&f.port, "port", 0, "UDP `PORT` for WireGuard (default: any free one)")
	cmd.Flags().StringVar(&f.portMapping, "port-mapping", "on", "`on` asks the gateway to forward that port, by PCP, NAT-PMP or UPnP; off does not")
	cmd.Flags().IntVar(&f.guesses, "port-guesses", defaultGuesses, "most `N` ports to guess in an attempt, where a NAT can be passed in no other way; 0 for none")
	cmd.Flags().StringSliceVar(&f.endpoints, "endpoint", nil, "`ADDR:PORT` at which peers can reach this node besides, as a forwarded port; may be given more than once")
	cmd.Flags().StringVar(&f.tun, "tun", node.TUNOff, "let all programs of this host into the network, by an interface of its own: `auto` if that is permitted, on, off")
	cmd.Flags().Lookup("tun").NoOptDefVal = node.TUNAuto
	cmd.Flags().StringVar(&f.tunName, "tun-name", ostun.DefaultName, "`NAME` of that interface")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 30*time.Second, "`TIME` to wait for the coordinator when joining")
	f.routingFlags.add(cmd)
	f.set = cmd.Flags()
}

// args are the flags for another process: those that were given, for the others it has kept.
func (f *nodeFlags) args(a *app) []string {
	args := []string{"--log-level", a.logLevel}
	for _, name := range append([]string{"name", "timeout"}, keptFlags...) {
		if flag := f.set.Lookup(name); flag.Changed {
			args = append(args, "--"+name+"="+flagText(flag))
		}
	}
	if a.stateDir != "" {
		args = append(args, "--state-dir", a.stateDir)
	}
	return args
}

func (f *nodeFlags) check() error {
	if f.inbound != "on" && f.inbound != "off" {
		return usage(fmt.Errorf("--inbound %q is neither on nor off", f.inbound), "")
	}
	if f.portMapping != "on" && f.portMapping != "off" {
		return usage(fmt.Errorf("--port-mapping %q is neither on nor off", f.portMapping), "")
	}
	if f.guesses < 0 || f.guesses > mostGuesses {
		return usage(fmt.Errorf("--port-guesses %d: want 0 to %d", f.guesses, mostGuesses), "0 stays on the relay where ports would have to be guessed")
	}
	for _, e := range f.endpoints {
		if a, err := netip.ParseAddrPort(e); err != nil || a.Port() == 0 || a.Addr().IsUnspecified() {
			return usage(fmt.Errorf("--endpoint %q is no address and port", e), "write 203.0.113.7:41641 or [2001:db8::7]:41641")
		}
	}
	switch f.tun {
	case node.TUNOff, node.TUNAuto, node.TUNOn:
	default:
		return usage(fmt.Errorf("--tun=%s is none of auto, on and off", f.tun), "")
	}
	if f.tun == node.TUNOn && f.inbound == "off" {
		return usage(errors.New("--inbound off is for the stack inside the process: by an interface the host itself takes in what the policy allows"),
			"leave one of them out; to take in nothing, let no rule name this node as a destination")
	}
	_, err := f.routing()
	return err
}

func (a *app) nodeCmd() *cobra.Command {
	var f nodeFlags
	var joinFile string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run the node in the foreground",
		Long: `Runs the node of this user in the foreground until it is interrupted, logging on stderr; for a service manager.
hedge up does the same in the background.

The first time it needs a join string, from --join-file (- for standard input) or from HEDGE_JOIN.

With --tun the host gets a network interface, so that any program reaches the network by its addresses, and peers reach
what listens here on this node's address or on 0.0.0.0, as far as the policy allows. It takes root or CAP_NET_ADMIN;
without, --tun (which is --tun=auto) does as if it were not there, and --tun=on fails.`,
		Example: "  hedge node --join-file join.txt\n  HEDGE_JOIN=hedge1-… hedge node --name web\n  hedge node --tun=on",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			join, err := a.readJoin("", joinFile)
			if err != nil {
				return err
			}
			return a.runNode(cmd.Context(), &f, join, func(s node.Status) { a.ready(s) })
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&joinFile, "join-file", "", "`FILE` that holds the join string; - for standard input")
	a.notifyFlag(cmd)
	return cmd
}

// runNode is a node until ctx is done or it is told to end.
func (a *app) runNode(ctx context.Context, f *nodeFlags, join string, ready func(node.Status)) error {
	log, d, err := a.station()
	if err != nil {
		return err
	}
	kept, err := recall(d)
	if err == nil {
		err = kept.apply(d, f.set, keptFlags)
	}
	if err == nil {
		err = f.check()
	}
	if err != nil {
		return err
	}
	cfg := node.Config{StateDir: d.node(), Socket: d.nodeSocket(), Join: join, Name: f.name, Proxy: f.proxy, Port: f.port,
		TUN: f.tun, TUNName: f.tunName, Version: buildInfo().Version, Log: log.With().Str("part", "node").Logger()}
	if cfg.Routing, err = f.routing(); err != nil {
		return err
	}
	cfg.NoPortMapping = f.portMapping == "off"
	if cfg.Guesses = f.guesses; f.guesses == 0 {
		cfg.Guesses = -1
	}
	for _, e := range f.endpoints {
		cfg.Endpoints = append(cfg.Endpoints, netip.MustParseAddrPort(e)) // it has been checked
	}
	if f.inbound == "on" {
		cfg.Inbound = node.Loopback
	}
	starting, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	n, err := node.Start(starting, cfg)
	if err != nil {
		return err
	}
	if n.Status().Device.Kind == node.DeviceTUN {
		makeRoom()
	}
	if kept.take(f.set, keptFlags) { // now that they have proven good
		if err := kept.keep(d); err != nil {
			log.Warn().Err(err).Msg("the flags will be forgotten")
		}
	}
	ready(firstContact(starting, n))
	select {
	case <-ctx.Done():
	case <-n.Done():
	}
	return n.Close()
}

// firstContact is the node's status once it has reached its coordinator, or has failed to for the first time: a node
// that is a member is up before either.
func firstContact(ctx context.Context, n *node.Node) node.Status {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s := n.Status()
		if s.Control.Connected || s.Control.Attempts > 0 {
			return s
		}
		select {
		case <-tick.C:
		case <-n.Done():
			return s
		case <-ctx.Done():
			return s
		}
	}
}

// readJoin finds the join string: an argument, a file, or HEDGE_JOIN; empty if there is none. It is a secret, and
// errors about it never repeat it.
func (a *app) readJoin(arg, file string) (string, error) {
	join := arg
	switch v, _ := lookupEnv("HEDGE_JOIN"); {
	case arg != "" && file != "":
		return "", usage(errors.New("the join string is given both as an argument and by --join-file"), "give it once")
	case file != "":
		b, err := a.readInput(file)
		if err != nil {
			return "", err
		}
		if join = strings.TrimSpace(string(b)); join == "" {
			return "", failed(fmt.Errorf("%s is empty, and should hold a join string", displayName(file)), newLine)
		}
	case arg == "":
		join = strings.TrimSpace(v)
	}
	if join == "" {
		return "", nil
	}
	if _, err := wire.ParseJoin(join); err != nil {
		return "", usage(err, "copy the whole line that hedge init or hedge admin join-key create printed")
	}
	return join, nil
}

// newLine is how to get a join string.
const newLine = "hedge admin join-key create, on the coordinator's machine, prints a new one"

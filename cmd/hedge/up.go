package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/node"
)

func (a *app) upCmd() *cobra.Command {
	var f nodeFlags
	var joinFile string
	var foreground bool
	cmd := &cobra.Command{
		Use:   "up [JOIN]",
		Short: "Join the network, or come back to it",
		Long: `Starts the node of this user in the background and waits until it is connected. JOIN is the line hedge1-… that hedge
init or hedge admin join-key create printed; it is needed once, since the node keeps its identity. It may also come
from --join-file (- for standard input) or HEDGE_JOIN, which keeps it out of the shell's history.

Programs reach the network through the proxy it reports:
  curl --socks5-hostname 127.0.0.1:1055 http://web.hedge.internal/

With --tun they need no proxy: the host gets a network interface, if that is permitted; see hedge node --help.

A member comes up by what it was last told when its coordinator does not answer, says so, and goes on trying. Where that
will not help (it was removed, its key has expired, a proxy refuses the password) the exit code is 3.

The node keeps its flags: hedge up without them, after hedge down or a restart, is as it was. Of a node that is up
already, what it does for others and its exit change at once, as by hedge set; the rest when it is started again.`,
		Example: `  hedge up hedge1-…
  hedge up --join-file - < line.txt
  hedge up                        as the node it already is
  hedge up --advertise-routes 10.33.0.0/16,fd00:33::/48
  hedge up --exit-node frankfurt
  hedge up --foreground           until Ctrl-C
  sudo hedge up --tun             with an interface of the host's own`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			var arg string
			if len(args) == 1 {
				arg = args[0]
			}
			if arg == node.TUNOn || arg == node.TUNOff || arg == node.TUNAuto {
				return usage(fmt.Errorf("%q is not a line to join with", arg), "if it belongs to --tun, write --tun="+arg)
			}
			join, err := a.readJoin(arg, joinFile)
			if err != nil {
				return err
			}
			return a.up(cmd.Context(), &f, join, foreground)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&joinFile, "join-file", "", "`FILE` that holds the join string; - for standard input")
	cmd.Flags().BoolVar(&foreground, "foreground", false, "stay, and log on stderr, until interrupted")
	return cmd
}

// upReport is what hedge up says.
type upReport struct {
	node.Status
	Already bool             `json:"already_up"`      // it was running
	Later   []string         `json:"later,omitempty"` // flags that count once it is started again
	Took    node.Seconds     `json:"took_seconds"`
	Ping    *node.PingResult `json:"ping,omitempty"` // of the first peer that is online
	Log     string           `json:"log,omitempty"`
}

func (a *app) up(ctx context.Context, f *nodeFlags, join string, foreground bool) error {
	d, err := a.dirs()
	if err != nil {
		return err
	}
	begin := time.Now()
	r := upReport{Log: d.log("node")}
	local := node.NewLocalClient(d.nodeSocket())
	r.Status, err = local.Status(ctx)
	if err == nil && r.State == node.StateRefused && join != "" { // removed or expired, and now let in again
		if err = local.Down(ctx); err == nil {
			err = silent(ctx, local)
		}
		if err == nil {
			err = &node.NotRunningError{}
		}
	}
	switch {
	case err == nil:
		if err := sameMesh(r.Status, join); err != nil {
			return err
		}
		r.Already = true
		if r.Later, err = a.change(ctx, d, local, f, &r.Status); err != nil {
			return err
		}
	case !notRunning(err):
		return err
	case foreground:
		return a.runNode(ctx, f, join, func(s node.Status) {
			r.Status, r.Took, r.Log = s, node.Seconds(time.Since(begin)), ""
			a.print(r, func(w io.Writer) { showUp(w, r) })
		})
	default:
		args := f.args(a)
		if join != "" {
			args = append(args, "--join-file", "-")
		}
		if err := a.start(ctx, d, "node", args, join, &r.Status); err != nil {
			return err
		}
		r.Took = node.Seconds(time.Since(begin))
	}
	if r.Status, err = someone(ctx, local, r.Status); err != nil {
		return err
	}
	r.Ping = a.firstPing(ctx, r.Peers)
	if err := a.print(r, func(w io.Writer) { showUp(w, r) }); err != nil {
		return err
	}
	if r.Control.Stuck && !r.Control.Connected {
		return errQuiet(exitNotConnected) // the report says why
	}
	return nil
}

// sameMesh refuses a join string for another mesh than the one the running node is in.
func sameMesh(s node.Status, join string) error {
	if join == "" {
		return nil
	}
	j, err := wire.ParseJoin(join)
	if err != nil {
		return err
	}
	if j.Pin.String() != s.Control.Pin {
		return usage(errors.New("this node is a member of another network than the one this line is for"),
			"leave that one first with hedge logout, or run a second node with --state-dir DIR")
	}
	return nil
}

// someone is the status once a peer is online: the coordinator says so just after a node has come up.
func someone(ctx context.Context, c *node.LocalClient, s node.Status) (node.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	for len(s.Peers) > 0 && s.Control.Connected && !slices.ContainsFunc(s.Peers, func(p node.Peer) bool { return p.Online }) {
		select {
		case <-ctx.Done():
			return s, nil
		case <-time.After(10 * time.Millisecond):
		}
		next, err := c.Status(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return s, nil
			}
			return s, err
		}
		s = next
	}
	return s, nil
}

// firstPing measures the way to a peer that should answer. No answer is no error: the peer may be just going.
func (a *app) firstPing(ctx context.Context, peers []node.Peer) *node.PingResult {
	for _, p := range peers {
		if !p.Online {
			continue
		}
		r, err := ask(ctx, a, 2*time.Second, func(ctx context.Context, c *node.LocalClient) (node.PingResult, error) { return c.Ping(ctx, p.Name) })
		if err != nil {
			return nil
		}
		return &r
	}
	return nil
}

func showUp(w io.Writer, r upReport) {
	switch {
	case r.Already:
		fmt.Fprintf(w, "%s is up already, since %s\n", r.FullName, r.Started.Format(time.DateTime))
	case r.State == node.StateRefused:
		fmt.Fprintf(w, "%s may not take part\n", r.FullName)
	case r.Control.Stuck:
		fmt.Fprintf(w, "%s is up, and not connected to its coordinator\n", r.FullName)
	default:
		fmt.Fprintf(w, "%s is up, after %s\n", r.FullName, short(time.Duration(r.Took)))
	}
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-8s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("address", "%s", list(r.Addrs))
	row("device", "%s", showDevice(r.Device))
	if r.State != node.StateRunning {
		row("state", "%s: %s", r.State, dash(r.Problem))
	}
	showRouting(r.Status, func(name, text string) { row(name, "%s", text) })
	online := 0
	for _, p := range r.Peers {
		if p.Online {
			online++
		}
	}
	row("peers", "%d, %d online", len(r.Peers), online)
	if r.Ping != nil {
		row("path", "to %s: %s, %s", r.Ping.Peer, r.Ping.Path, short(time.Duration(r.Ping.RTT)))
	} else if r.Relay.ID != 0 {
		row("path", "relay %d until a direct one is found", r.Relay.ID)
	}
	if r.Proxy != "" {
		row("proxy", "%s (SOCKS5 and HTTP)", r.Proxy)
	}
	if r.Log != "" {
		row("log", "%s", r.Log)
	}
	if len(r.Later) > 0 {
		fmt.Fprintf(w, "--%s: kept, and in force after hedge down and hedge up\n", strings.Join(r.Later, ", --"))
	}
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/node"
	"github.com/hedge-mesh/hedge/node/bind"
)

func (a *app) netcheckCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "netcheck",
		Short: "Show the network around this node: NAT, addresses, relays",
		Long: `Shows what stands between this node and others, as the running node sees it on the socket that peers use:

  udp     blocked if no server answers: then everything goes by relay, which works, but is slower
  nat     none, or of two sorts. easy: one outside port for all peers, who can reach it directly
          hard: another port for each peer; two hard ones meet by luck, or by relay
  filter  by port: only whom this node sent to gets in. Not by port: a peer's other ports get in, too
  hairpin whether two nodes behind this NAT can meet at its outside address
  port    what the gateway forwards to this node, by PCP, NAT-PMP or UPnP, and whether packets come through
  mapped  this node's addresses from outside; peers try these, and the local ones
  relays  how far each is; peers find this node at its home relay. Others are connected when they are needed
  peer relays, if this node may use any: how it reaches each, which must be directly, and how many peers may use it, too

It exits with 3 if no node is running.`,
		Example: "  hedge netcheck\n  hedge netcheck --json | jq .nat.kind",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := ask(cmd.Context(), a, localTimeout, func(ctx context.Context, c *node.LocalClient) (node.Netcheck, error) { return c.Netcheck(ctx) })
			if err != nil {
				return err
			}
			return a.print(n, func(w io.Writer) { showNetcheck(w, n) })
		},
	}
}

// portText says what the gateway forwards, or why it does not.
func portText(m node.PortMapping) string {
	switch {
	case m.Note != "":
		return "none: " + m.Note
	case m.External != "":
		return fmt.Sprintf("%s by %s of %s, %s", m.External, m.Protocol, m.Gateway,
			map[bind.Finding]string{bind.Yes: "and packets come through", bind.No: "and nothing comes through", bind.Unknown: "not tried from outside"}[m.Works])
	}
	var why []string
	for _, p := range slices.Sorted(maps.Keys(m.Refused)) {
		why = append(why, p+": "+m.Refused[p])
	}
	return "none: " + cmp.Or(strings.Join(why, "; "), "still asking "+m.Gateway)
}

func showPeerRelays(w io.Writer, relays []node.PeerRelayCheck) {
	if len(relays) == 0 {
		return
	}
	rows := [][]string{{"PEER RELAY", "PATH TO IT", "RTT", "FOR"}}
	for _, r := range relays {
		path := r.Path.String()
		if !r.Online {
			path += ", offline"
		}
		rows = append(rows, []string{r.Name, path, short(time.Duration(r.Path.RTT)), fmt.Sprintf("%d peers", r.Peers)})
	}
	fmt.Fprintln(w)
	table(w, rows...)
}

func showNetcheck(w io.Writer, n node.Netcheck) {
	row := func(name, text string) { fmt.Fprintf(w, "%-7s %s\n", name, text) }
	udp := "not known: no server answers yet"
	switch {
	case n.UDPBlocked:
		udp = fmt.Sprintf("blocked: none of %d servers answers; everything goes by relay", n.Asked)
	case n.Asked == 0:
		udp = "not known: no relay of this network answers STUN"
	case n.Answered > 0:
		udp = fmt.Sprintf("yes, %d of %d servers answered", n.Answered, n.Asked)
	}
	row("udp", udp)
	row("nat", n.NAT.Text)
	row("filter", map[bind.Finding]string{bind.Yes: "not by port", bind.No: "by port", bind.Unknown: "not known"}[n.AnyPort])
	row("hairpin", map[bind.Finding]string{bind.Yes: "yes", bind.No: "no", bind.Unknown: "not known"}[n.Hairpin])
	row("unasked", map[bind.Finding]string{bind.Yes: "spoils a port for its sender, so that peers must take care", bind.No: "does no harm", bind.Unknown: "not known"}[n.Spoilt])
	row("port", portText(n.PortMapping))
	if n.Captive != "" {
		row("captive", fmt.Sprintf("somebody else answers for %s: a captive portal? Open a web page on this machine, and agree to what it asks", n.Captive))
	}
	row("ipv6", map[bool]string{true: "yes", false: "no"}[n.IPv6])
	row("mapped", dash(list(n.Mapped)))
	row("local", dash(list(n.Local)))
	defer showPeerRelays(w, n.PeerRelays)
	if len(n.Relays) == 0 {
		row("relays", "none: peers that cannot be reached directly cannot be reached")
		return
	}
	rows := [][]string{{"RELAY", "URL", "LATENCY", "STATE"}}
	for _, r := range n.Relays {
		state := "not needed now"
		switch {
		case r.Connected:
			state = "connected"
		case r.Home:
			state = "not connected"
		case r.Latency == 0 && !n.UDPBlocked:
			state = "no answer"
		}
		if r.Home {
			state += ", home"
		}
		rows = append(rows, []string{fmt.Sprint(r.ID), dash(r.URL), short(time.Duration(r.Latency)), state})
	}
	fmt.Fprintln(w)
	table(w, rows...)
}

package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/node"
)

func (a *app) statusCmd() *cobra.Command {
	var peer string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node, its peers, and how each is reached",
		Long: `Shows this node, the state of its connection to the coordinator, and every peer that the policy lets it see, with
the path that packets take to it now. It exits with 3 if no node is running.

--why PEER tells about one peer why it is reached as it is: the NATs at both ends, each address that was tried and what
became of it, the path in use, when it was last switched and why. Addresses are tried when packets are sent: after
a rest, hedge ping PEER shows how it is now.`,
		Example: "  hedge status\n  hedge status --why web\n  hedge status --json | jq '.peers[] | {name, path}'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("why") {
				return a.whyPath(cmd.Context(), peer)
			}
			s, err := ask(cmd.Context(), a, localTimeout, func(ctx context.Context, c *node.LocalClient) (node.Status, error) { return c.Status(ctx) })
			if err != nil {
				return err
			}
			return a.print(s, func(w io.Writer) { showStatus(w, s, time.Now()) })
		},
	}
	cmd.Flags().StringVar(&peer, "why", "", "say why `PEER` is reached as it is")
	return cmd
}

func showStatus(w io.Writer, s node.Status, now time.Time) {
	fmt.Fprintf(w, "%s  %s\n", dash(s.FullName), s.State)
	if s.Problem != "" {
		fmt.Fprintf(w, "  problem: %s\n", s.Problem)
	}
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("address", "%s", dash(list(s.Addrs)))
	row("owner", "%s", dash(owner(s.User, s.Tags)))
	policy := fmt.Sprintf("revision %d, %d rules", s.Policy.Revision, s.Policy.Rules)
	if s.Policy.FromDisk {
		policy += ", as it was when last connected"
	}
	row("policy", "%s", policy)
	row("coordinator", "%s", showControl(s.Control, now))
	if s.Relay.ID != 0 {
		row("relay", "%d %s", s.Relay.ID, s.Relay.URL)
	}
	row("device", "%s", showDevice(s.Device))
	if s.Proxy != "" {
		row("proxy", "%s (SOCKS5 and HTTP)", s.Proxy)
	}
	row("inbound", "%s", s.Inbound)
	showRouting(s, func(name, text string) { row(name, "%s", text) })
	if len(s.Peers) == 0 {
		fmt.Fprintln(w, "\nNo peers: nobody else is here yet, or no rule lets this node and another reach each other.")
		return
	}
	rows := [][]string{{"PEER", "ADDRESS", "OWNER", "PATH", "RTT", "SEEN"}}
	routed := slices.ContainsFunc(s.Peers, func(p node.Peer) bool { return len(p.Routes) > 0 })
	if routed {
		rows[0] = append(rows[0], "CARRIES")
	}
	for _, p := range s.Peers {
		seen := ago(p.LastSeen, now)
		if p.Online {
			seen = "online"
		}
		if p.Expired {
			seen = "expired"
		}
		r := []string{p.Name, first(p.Addrs), dash(owner(p.User, p.Tags)), p.Path.String(), short(time.Duration(p.Path.RTT)), seen}
		if routed {
			r = append(r, dash(routesText(p.Routes)))
		}
		rows = append(rows, r)
	}
	fmt.Fprintln(w)
	table(w, rows...)
}

// showDevice says how programs of this host reach the network, and why that way.
func showDevice(d node.Device) string {
	if d.Kind == node.DeviceTUN {
		return fmt.Sprintf("interface %s, MTU %d: %s", d.Name, d.MTU, d.Why)
	}
	return fmt.Sprintf("%s, MTU %d: %s", d.Kind, d.MTU, d.Why)
}

func showControl(c node.Control, now time.Time) string {
	if c.Connected {
		return fmt.Sprintf("connected, %s", strings.Join(c.URLs, ", "))
	}
	s := "not connected"
	if !c.Since.IsZero() {
		s += " since " + ago(c.Since, now)
	}
	if c.LastError != "" {
		s += ": " + c.LastError
	}
	return s
}

// owner is who a node belongs to: a user, or the tags it has instead.
func owner(user string, tags []string) string {
	if len(tags) > 0 {
		return strings.Join(tags, ",")
	}
	return user
}

func first(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "-"
	}
	return addrs[0].String()
}

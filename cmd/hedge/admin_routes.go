package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/coordinator"
)

func (a *app) nodeRoutesCmd() *cobra.Command {
	var approve, revoke []string
	cmd := &cobra.Command{
		Use:   "routes NAME",
		Short: "Show, approve and revoke what a node carries for others",
		Long: `Shows the networks behind a node: what it offers (hedge up --advertise-routes), and whether that is approved. A node
carries nothing for others until a route is approved, by autoApprovers in the ACL file or here. ROUTE is a prefix
exactly as it is offered, or exit for all of the internet. Who may then use it, rules say.

What is revoked here stays so, whatever autoApprovers says, and so does what overlaps it, until it is approved here
again. Connections through what is no longer carried are ended at once.`,
		Example: `  hedge admin node routes router
  hedge admin node routes router --approve 10.33.0.0/16,fd00:33::/48
  hedge admin node routes server1 --approve exit
  hedge admin node routes router --revoke 10.33.0.0/16`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r coordinator.RoutesRequest
			var err error
			if r.Approve, err = parseRoutes("--approve", approve, true); err != nil {
				return err
			}
			if r.Revoke, err = parseRoutes("--revoke", revoke, true); err != nil {
				return err
			}
			n, err := admin(cmd.Context(), a, func(ctx context.Context, c *coordinator.AdminClient) (*coordinator.NodeInfo, error) {
				if len(r.Approve)+len(r.Revoke) == 0 {
					return c.Node(ctx, args[0])
				}
				return c.Routes(ctx, args[0], r)
			})
			if err != nil {
				return err
			}
			return a.print(struct {
				Name   string                  `json:"name"`
				Routes []coordinator.RouteInfo `json:"routes"`
			}{n.Name, noNil(n.Routes)}, func(w io.Writer) { showRoutes(w, n) })
		},
	}
	cmd.Flags().StringSliceVar(&approve, "approve", nil, "let the node carry `ROUTE`; may be repeated")
	cmd.Flags().StringSliceVar(&revoke, "revoke", nil, "let the node not carry `ROUTE` any more; may be repeated")
	return cmd
}

func showRoutes(w io.Writer, n *coordinator.NodeInfo) {
	if len(n.Routes) == 0 {
		fmt.Fprintf(w, "%s offers no routes; on that machine: hedge set --advertise-routes 10.33.0.0/16\n", n.Name)
		return
	}
	rows := [][]string{{"ROUTE", "OFFERED", "APPROVED", "STATE"}}
	for _, r := range n.Routes {
		rows = append(rows, []string{r.Route.String(), yes(r.Advertised), yes(r.Approved), routeState(r)})
	}
	table(w, rows...)
}

// carriesText is what a node carries, and how much waits.
func carriesText(n *coordinator.NodeInfo) string {
	var carried []netip.Prefix
	waiting := 0
	for _, r := range n.Routes {
		switch {
		case r.Advertised && r.Approved:
			carried = append(carried, r.Route)
		case r.Advertised && r.By == "":
			waiting++
		}
	}
	text := dash(routesText(carried))
	if waiting > 0 {
		text += fmt.Sprintf("; %d waiting for approval: hedge admin node routes %s", waiting, n.Name)
	}
	return text
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// routeState is what becomes of a route, and by whose word.
func routeState(r coordinator.RouteInfo) string {
	by := map[string]string{"policy": "by the policy", "admin": "by an admin"}[r.By]
	switch {
	case !r.Approved && r.By != "":
		return "revoked " + by
	case !r.Approved:
		return "waits for --approve, or for autoApprovers"
	case !r.Advertised:
		return "approved " + by + ", and not offered"
	case r.StandbyFor != "":
		return "approved " + by + ", stand-by for " + r.StandbyFor
	}
	return "carried, approved " + by
}

// anywhere is "exit" in prefixes.
var anywhere = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}

// parseRoutes reads prefixes; exits are "exit", if they may be among them.
func parseRoutes(flag string, in []string, exits bool) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range in {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		if s == "exit" && exits {
			out = append(out, anywhere...)
			continue
		}
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			return nil, usage(fmt.Errorf("%s: %q is no prefix", flag, s), "write it as 10.33.0.0/16 or fd00:33::/48")
		case p != p.Masked():
			return nil, usage(fmt.Errorf("%s: %s has bits behind its length", flag, s), "write "+p.Masked().String())
		case p.Bits() == 0 && !exits:
			return nil, usage(fmt.Errorf("%s: %s is all of the internet", flag, s), "to be an exit, use --advertise-exit")
		case !slices.Contains(out, p):
			out = append(out, p)
		}
	}
	return out, nil
}

package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/node"
)

func (a *app) ipCmd() *cobra.Command {
	var v4, v6 bool
	cmd := &cobra.Command{
		Use:     "ip [NAME]",
		Short:   "Print the addresses of this node, or of a peer",
		Long:    `Prints the addresses in the mesh of this node, or of the peer NAME, one a line, IPv4 first.`,
		Example: "  hedge ip\n  hedge ip web -4",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var name string
			if len(args) == 1 {
				name = args[0]
			}
			all, err := ask(cmd.Context(), a, localTimeout, func(ctx context.Context, c *node.LocalClient) ([]netip.Addr, error) { return c.IP(ctx, name) })
			if err != nil {
				return err
			}
			addrs := slices.DeleteFunc(noNil(all), func(ip netip.Addr) bool { return v4 != v6 && v4 != ip.Is4() })
			return a.print(addrs, func(w io.Writer) {
				for _, ip := range addrs {
					fmt.Fprintln(w, ip)
				}
			})
		},
	}
	cmd.Flags().BoolVarP(&v4, "ipv4", "4", false, "only the IPv4 address")
	cmd.Flags().BoolVarP(&v6, "ipv6", "6", false, "only the IPv6 address")
	return cmd
}

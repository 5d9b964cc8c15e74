package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/node"
)

func (a *app) whyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "why [SRC] DST:PORT[/PROTO]",
		Short: "Say whether a connection is allowed, and which rule says so",
		Long: `Says whether the policy that this node enforces allows a new connection, and names the rule, with its file and line,
or says that there is none. SRC and DST are names or addresses; one of the two must be this node, and SRC is this node
unless it is given. PROTO is tcp unless it is given: tcp, udp, icmp, or a protocol's number; icmp has no port.

It exits with 0 if the connection is allowed and with 4 if it is denied.`,
		Example: "  hedge why web:80\n  hedge why db:5432/tcp\n  hedge why alice web:22\n  hedge why web/icmp",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := parseWhy(args)
			if err != nil {
				return usage(err, "")
			}
			r, err := ask(cmd.Context(), a, localTimeout, func(ctx context.Context, c *node.LocalClient) (node.WhyResult, error) { return c.Why(ctx, q) })
			if err != nil {
				return err
			}
			if err := a.print(r, func(w io.Writer) { fmt.Fprintln(w, r.Text) }); err != nil {
				return err
			}
			if !r.Allow {
				return errQuiet(exitDenied)
			}
			return nil
		},
	}
}

// protocols are the IANA numbers of those that people name.
var protocols = map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}

func parseWhy(args []string) (node.WhyQuery, error) {
	var q node.WhyQuery
	if len(args) == 2 {
		q.Src = args[0]
	}
	dst, proto, has := strings.Cut(args[len(args)-1], "/")
	q.Proto = protocols["tcp"]
	if has {
		p, known := protocols[strings.ToLower(proto)]
		if !known {
			n, err := strconv.ParseUint(proto, 10, 8)
			if err != nil {
				return q, fmt.Errorf("%q is no protocol", proto)
			}
			p = uint8(n)
		}
		q.Proto = p
	}
	i := strings.LastIndexByte(dst, ':')
	bare := i < 0 || strings.HasSuffix(dst, "]") || strings.Count(dst, ":") > 1 && !strings.HasPrefix(dst, "[")
	if bare {
		if q.Proto == protocols["tcp"] || q.Proto == protocols["udp"] {
			return q, fmt.Errorf("%q has no port", dst)
		}
		q.Dst = strings.Trim(dst, "[]")
		return q, nil
	}
	port, err := strconv.ParseUint(dst[i+1:], 10, 16)
	if err != nil || port == 0 {
		return q, fmt.Errorf("%q is no port", dst[i+1:])
	}
	q.Port = uint16(port)
	if q.Dst = strings.Trim(dst[:i], "[]"); q.Dst == "" {
		return q, errors.New("a name or an address must stand before the port")
	}
	return q, nil
}

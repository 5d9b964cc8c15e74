package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/acl"
)

// asking are the flags of the verbs that ask about one policy.
type asking struct {
	acl, inventory string
	live           bool
}

func (q *asking) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&q.acl, "acl", "", "ACL `FILE` to ask (default: the policy in force, if the coordinator runs here; else its file, acl.hujson)")
	inventoryFlag(cmd, &q.inventory)
	liveFlag(cmd, &q.live)
}

func (a *app) subjectOf(ctx context.Context, q asking) (*subject, error) {
	if q.live && q.inventory != "" {
		return nil, usage(errors.New("--live and --inventory both say who there is"), "give one of them")
	}
	if q.live || q.acl == "" && q.inventory == "" && a.coordinatorRuns() {
		return a.liveSubject(ctx, q.acl)
	}
	file, err := a.aclFile(q.acl)
	if err != nil {
		return nil, err
	}
	return a.aclSubject(file, q.inventory)
}

func (a *app) aclWhyCmd() *cobra.Command {
	var q asking
	cmd := &cobra.Command{
		Use:   "why SRC DST[:PORT][/PROTO]",
		Short: "Say whether a connection would be allowed, by which rules, or what is missing",
		Long: `Says whether a policy lets SRC open a connection to DST, and names every rule that does, with its file and line. If
it is denied, it names the rule that comes nearest, and the one thing that this rule lacks: the port, the protocol, the
source, the destination, a posture, or a route that nobody has been approved for.

SRC and DST are names of nodes, addresses, users, groups or tags; of several nodes, each kind gets an answer of its own.
On the coordinator's machine it asks the policy in force about the nodes there are; with --acl FILE --live, what FILE
would say about them.
PROTO is tcp unless it is given; icmp and the like have no port. It exits with 4 if any answer is denied.`,
		Example: "  hedge acl why alice@example.com web:80\n  hedge acl why tag:web tag:db:5432 --acl acl.hujson\n  hedge acl why laptop db:5432 --acl new.hujson --live\n  hedge acl why laptop 10.33.1.1:443/tcp --inventory nodes.hujson",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			dst, port, proto, err := parseAim(args[1])
			if err == nil && port == 0 && acl.HasPorts(proto) {
				err = fmt.Errorf("%q has no port", args[1])
			}
			if err != nil {
				return usage(err, "")
			}
			s, err := a.subjectOf(cmd.Context(), q)
			if err != nil {
				return err
			}
			answers, err := s.why(args[0], dst, port, proto)
			if err != nil {
				return failed(err, "")
			}
			if err := a.print(answers, func(w io.Writer) {
				for _, x := range answers {
					fmt.Fprintln(w, x)
				}
			}); err != nil {
				return err
			}
			if slices.ContainsFunc(answers, func(x acl.Answer) bool { return !x.Allow }) {
				return errQuiet(exitDenied)
			}
			return nil
		},
	}
	q.flags(cmd)
	return cmd
}

// parseAim reads DST[:PORT][/PROTO]. DST may itself have colons: a tag, an IPv6 address, in brackets if a port follows.
// port is 0 where there is none.
func parseAim(s string) (dst string, port uint16, proto uint8, err error) {
	proto = 6
	if at := strings.LastIndexByte(s, '/'); at >= 0 {
		if proto, err = acl.ParseProto(s[at+1:]); err != nil {
			return "", 0, 0, err
		}
		s = s[:at]
	}
	if _, err := netip.ParseAddr(s); err == nil || strings.HasSuffix(s, "]") {
		return strings.Trim(s, "[]"), 0, proto, nil
	}
	at := strings.LastIndexByte(s, ':')
	if at < 0 {
		return s, 0, proto, nil
	}
	n, err := strconv.ParseUint(s[at+1:], 10, 16)
	kind := s[:at]
	switch {
	case err == nil && n > 0:
		return strings.Trim(s[:at], "[]"), uint16(n), proto, nil
	case err != nil && slices.Contains([]string{"tag", "group", "autogroup", "user"}, kind):
		return s, 0, proto, nil
	}
	return "", 0, 0, fmt.Errorf("%q is no port", s[at+1:])
}

// maxAnswers bounds the answers of one why: pairs of nodes that differ are not many in a question worth asking.
const maxAnswers = 1000

// why answers for each source and destination; those that are told alike are asked once.
func (s *subject) why(src, dst string, port uint16, proto uint8) ([]acl.Answer, error) {
	from, addr, err := s.program.Find(src)
	if err != nil {
		return nil, err
	}
	if len(from) == 0 {
		return nil, fmt.Errorf("%s is no node's address; name the node", addr)
	}
	to, addr, err := s.program.Find(dst)
	if err != nil {
		return nil, err
	}
	var out []acl.Answer
	ask := func(f acl.NodeID, at netip.Addr) error {
		n := proto
		if n == 1 && at.Is6() {
			n = 58
		}
		x, err := s.program.Why(f, at, port, n, time.Now())
		if err != nil || slices.ContainsFunc(out, func(o acl.Answer) bool { return o.Src == x.Src && o.Dst == x.Dst && o.String() == x.String() }) {
			return err
		}
		out = append(out, x)
		return nil
	}
	for _, f := range from {
		if addr.IsValid() {
			if err := ask(f, addr); err != nil {
				return nil, err
			}
			continue
		}
		for _, t := range to {
			for _, at := range s.common(f, t) {
				if t == f && len(to) > 1 || len(out) >= maxAnswers {
					continue
				}
				if err := ask(f, at); err != nil {
					return nil, err
				}
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s and %s have no address family in common, or are one node", src, dst)
	}
	return out, nil
}

// common are the addresses of a node in families that another has too: the first of each, IPv4 before IPv6.
func (s *subject) common(from, to acl.NodeID) []netip.Addr {
	var out []netip.Addr
	for _, v6 := range []bool{false, true} {
		has := slices.ContainsFunc(s.program.Node(from).Addrs, func(a netip.Addr) bool { return a.Is6() == v6 })
		i := slices.IndexFunc(s.program.Node(to).Addrs, func(a netip.Addr) bool { return a.Is6() == v6 })
		if has && i >= 0 {
			out = append(out, s.program.Node(to).Addrs[i])
		}
	}
	return out
}

func (a *app) aclWhoCmd() *cobra.Command {
	var q asking
	cmd := &cobra.Command{
		Use:   "who DST[:PORT][/PROTO]",
		Short: "List everyone who could reach a destination",
		Long: `Lists everyone who may open a connection to DST, what they may open, and by which rule. DST is a node, an address,
a user, a group or a tag; with a port, only those who reach this port are listed. Everyone is named by what they are,
a user or tags, and not by address.`,
		Example: "  hedge acl who db\n  hedge acl who tag:db:5432\n  hedge acl who 10.33.1.1:443 --inventory nodes.hujson",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dst, port, proto, err := parseAim(args[0])
			if err != nil {
				return usage(err, "")
			}
			s, err := a.subjectOf(cmd.Context(), q)
			if err != nil {
				return err
			}
			ids, addr, err := s.program.Find(dst)
			if err != nil {
				return failed(err, "")
			}
			var out []acl.Access
			if addr.IsValid() {
				out = s.program.WhoReachesAddr(addr, time.Now())
			} else {
				out = s.program.WhoReaches(ids, time.Now())
			}
			if port != 0 || strings.Contains(args[0], "/") {
				out = onlyService(out, port, proto)
			}
			return a.showAccess(out, "nobody reaches "+args[0])
		},
	}
	q.flags(cmd)
	return cmd
}

// onlyService keeps what is about one port of one protocol.
func onlyService(as []acl.Access, port uint16, proto uint8) []acl.Access {
	var out []acl.Access
	for _, x := range as {
		x.Services = slices.DeleteFunc(slices.Clone(x.Services), func(s acl.Service) bool {
			return !(s.Proto == proto || proto == 1 && s.Proto == 58) || port != 0 && !s.Ports.Contains(port)
		})
		if len(x.Services) > 0 {
			out = append(out, x)
		}
	}
	return out
}

func (a *app) aclReachCmd() *cobra.Command {
	var q asking
	cmd := &cobra.Command{
		Use:   "reach SRC",
		Short: "List everything that somebody could reach",
		Long: `Lists everything to which SRC may open a connection, on which ports, and by which rule. SRC is a node, a user, a group
or a tag. What lies behind a subnet router or an exit node is named with who carries it.`,
		Example: "  hedge acl reach alice@example.com\n  hedge acl reach tag:web --acl acl.hujson --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.subjectOf(cmd.Context(), q)
			if err != nil {
				return err
			}
			ids, addr, err := s.program.Find(args[0])
			if err != nil {
				return failed(err, "")
			}
			if len(ids) == 0 {
				return failed(fmt.Errorf("%s is no node's address; name the node", addr), "")
			}
			return a.showAccess(s.program.Reach(ids, time.Now()), args[0]+" reaches nothing")
		},
	}
	q.flags(cmd)
	return cmd
}

func (a *app) showAccess(as []acl.Access, none string) error {
	return a.print(noNil(as), func(w io.Writer) {
		if len(as) == 0 {
			fmt.Fprintln(w, none)
			return
		}
		rows := [][]string{{"WHO", "REACHES", "ON", "BY"}}
		for _, x := range as {
			for _, l := range servicesByRule(x.Services) {
				rows = append(rows, []string{acl.PartiesText(x.Src), acl.PartiesText(x.Dst) + familyText(x.Family), l.what, l.rule})
			}
		}
		table(w, rows...)
	})
}

type serviceLine struct{ what, rule string }

// servicesByRule puts the services of one rule on one line; those of IPv6 ping are told as ping.
func servicesByRule(ss []acl.Service) []serviceLine {
	var out []serviceLine
	for _, s := range ss {
		rule := fmt.Sprintf("%s (%s)", s.Rule, s.Pos)
		what := s.String()
		if s.Proto == 58 {
			what = "icmp"
		}
		if !s.From.IsZero() {
			what += " from " + s.From.Format(time.RFC3339)
		}
		i := slices.IndexFunc(out, func(l serviceLine) bool { return l.rule == rule })
		switch {
		case i < 0:
			out = append(out, serviceLine{what, rule})
		case !slices.Contains(strings.Split(out[i].what, " "), what):
			out[i].what += " " + what
		}
	}
	return out
}

func familyText(f int) string {
	if f == 0 {
		return ""
	}
	return fmt.Sprintf(" (IPv%d)", f)
}

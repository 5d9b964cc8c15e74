package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/acl"
)

// enforced is what one node is sent.
type enforced struct {
	Node  acl.Node           `json:"node"`
	Peers []string           `json:"peers"`
	Rules []acl.Rule         `json:"rules"`
	Sets  map[string]acl.Set `json:"sets"`
}

// aclCompileCmd shows what each node enforces; with --compat, in Tailscale's flat form, for those who compare.
func (a *app) aclCompileCmd() *cobra.Command {
	var compat bool
	var file, inventory, node string
	cmd := &cobra.Command{
		Use:   "compile FILE",
		Short: "Show what each node would enforce",
		Long: `Compiles an ACL file and shows, for each node, the peers that it would see and the rules that it would be sent:
"in" for those that let others reach it, "out" for those that let it reach others. A node is sent nothing else.
--json has the members of the sets that rules name, too.`,
		Example: "  hedge acl compile acl.hujson\n  hedge acl compile acl.hujson --inventory nodes.hujson --node web1",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if compat || file != "" {
				return a.compileCase(compat, file)
			}
			if len(args) == 0 {
				return usage(errors.New("name an ACL file"), "")
			}
			s, err := a.aclSubject(args[0], inventory)
			if err != nil {
				return err
			}
			return a.showEnforced(s, node)
		},
	}
	inventoryFlag(cmd, &inventory)
	cmd.Flags().StringVar(&node, "node", "", "only the node of this `NAME`")
	cmd.Flags().BoolVar(&compat, "compat", false, "read the policy as Tailscale's service would")
	cmd.Flags().StringVar(&file, "case", "", "`FILE` that holds a policy with its users and nodes; - for standard input")
	_ = cmd.Flags().MarkHidden("compat")
	_ = cmd.Flags().MarkHidden("case")
	return cmd
}

func (a *app) compileCase(compat bool, file string) error {
	if !compat || file == "" {
		return usage(errors.New("--compat and --case are both needed"), "")
	}
	src, err := a.readInput(file)
	if err != nil {
		return err
	}
	out, err := acl.CompatCase(src)
	if err != nil {
		return failed(err, "")
	}
	_, err = fmt.Fprintln(a.stdout, string(out))
	return err
}

// showEnforced prints what all nodes are sent, or the one so named. A large mesh's is never held as a whole; its JSON is
// an array with one node a line.
func (a *app) showEnforced(s *subject, name string) error {
	nodes := s.program.Nodes()
	names := make(map[acl.NodeID]string, len(nodes))
	for i := range nodes {
		names[nodes[i].ID] = nodes[i].Name
	}
	if name != "" {
		ids, _, err := s.program.Find(name)
		if err != nil {
			return failed(err, "")
		}
		nodes = []acl.Node{s.program.Node(ids[0])}
	}
	w := bufio.NewWriterSize(a.stdout, 64<<10)
	j := json.NewEncoder(w)
	j.SetEscapeHTML(false)
	before := "["
	for _, n := range nodes {
		v := s.program.View(n.ID)
		e := enforced{Node: n, Peers: make([]string, len(v.Peers)), Rules: noNil(v.Rules), Sets: v.Sets}
		for i, p := range v.Peers {
			e.Peers[i] = names[p]
		}
		switch {
		case !a.json:
			e.show(w)
			continue
		case name != "":
			return a.print([]enforced{e}, nil)
		}
		w.WriteString(before)
		before = ","
		if err := j.Encode(e); err != nil {
			return fmt.Errorf("print JSON: %w", err)
		}
	}
	if a.json {
		w.WriteString(strings.TrimPrefix(before, ",") + "]\n")
	}
	return w.Flush()
}

func (e *enforced) show(w io.Writer) {
	fmt.Fprintf(w, "%s (%s) sees %s\n", e.Node.Name, dash(e.Node.Identity()), dash(strings.Join(e.Peers, ", ")))
	rows := [][]string{}
	for i := range e.Rules {
		r := &e.Rules[i]
		out, in := e.concerns(r)
		for _, d := range []struct {
			is   bool
			name string
		}{{in, "  in"}, {out, "  out"}} {
			if d.is {
				rows = append(rows, []string{d.name, ruleText(r), r.Path, r.Pos.String()})
			}
		}
	}
	table(w, rows...)
}

// concerns reports whether the node is a source of the rule, and whether a destination.
func (e *enforced) concerns(r *acl.Rule) (src, dst bool) {
	for _, s := range r.Src {
		src = src || e.in(e.Sets[s])
	}
	for _, t := range r.Dst {
		dst = dst || e.in(e.Sets[t.Set])
	}
	return src, dst
}

func (e *enforced) in(s acl.Set) bool {
	if s.Any {
		return true
	}
	for _, id := range s.Nodes {
		if id == e.Node.ID {
			return true
		}
	}
	for _, p := range s.Prefixes {
		for _, a := range e.Node.Addrs {
			if p.Contains(a) {
				return true
			}
		}
		for _, r := range e.Node.Routes {
			if p.Overlaps(r) {
				return true
			}
		}
	}
	return false
}

// ruleText is a rule on one line: "group:eng -> tag:web:80,443 tcp".
func ruleText(r *acl.Rule) string {
	var dst []string
	for _, t := range r.Dst {
		if r.Action == acl.Relay {
			dst = append(dst, t.Set)
			continue
		}
		dst = append(dst, t.Set+":"+strings.ReplaceAll(list(t.Ports), ", ", ","))
	}
	s := strings.Join(r.Src, ", ") + " -> " + strings.Join(dst, ", ")
	if r.Action == acl.Deny {
		s = "DENY " + s
	}
	if r.Action == acl.Relay {
		s = "RELAY " + s
	}
	if len(r.Protos) > 0 && len(r.Protos) < 5 {
		var ns []string
		for _, n := range r.Protos {
			ns = append(ns, acl.ProtoName(n))
		}
		s += " " + strings.Join(ns, ",")
	}
	if !r.Expires.IsZero() {
		s += " until " + r.Expires.Format(time.RFC3339)
	}
	if r.Window != "" {
		s += " in " + string(r.Window)
	}
	return s
}

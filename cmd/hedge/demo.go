package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/hedge-mesh/hedge/coordinator"
	"github.com/hedge-mesh/hedge/node"
	"github.com/hedge-mesh/hedge/node/hatch"
)

//go:embed demo.hujson
var demoPolicy []byte

// demoTimeout bounds a node's way into the demo's network.
const demoTimeout = 30 * time.Second

const demoUser = "alice@example.com"

// demoNode is a machine of the demo.
type demoNode struct {
	name  string
	tag   string   // empty: it belongs to demoUser
	ports []uint16 // of its small HTTP services
}

var demoNodes = []demoNode{
	{"alice", "", []uint16{22}},
	{"web", "tag:web", []uint16{22, 80}},
	{"db", "tag:db", []uint16{22, 5432}},
}

type demoFlags struct {
	once       bool
	acl, proxy string
}

func (a *app) demoCmd() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a whole network in one process, on loopback, without privileges",
		Long: `Runs a coordinator, a relay with STUN and three nodes in this one process, joined by real WireGuard over loopback UDP,
with their state in a temporary folder that is gone afterwards:

  alice   a laptop of the user alice@example.com
  web     a server, tag:web, with HTTP on port 80
  db      a server, tag:db, with HTTP on port 5432

It tries every connection between them and prints what became of it: allowed, or denied and why. Then edit the ACL file
it names: saving it tries everything again at once and marks what changed; a file with errors is told, and the policy
before it stays. Ctrl-C ends it.

From another terminal, be alice:
  curl --socks5-hostname ADDR http://web.hedge.internal/`,
		Example: `  hedge demo
  hedge demo --once --json
  hedge demo --acl my.hujson        with a policy of your own for these three nodes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("log-level") {
				a.logLevel = "fatal" // the demo says itself what goes on
			}
			return a.demo(cmd.Context(), f)
		},
	}
	cmd.Flags().BoolVar(&f.once, "once", false, "print one matrix and end")
	cmd.Flags().StringVar(&f.acl, "acl", "", "ACL `FILE` to use, and watch (default: one in the temporary folder)")
	cmd.Flags().StringVar(&f.proxy, "proxy", "127.0.0.1:0", "loopback `ADDR` of alice's SOCKS5 and HTTP proxy")
	return cmd
}

// demo is the whole of it: everything starts, and everything is gone when it returns.
type demo struct {
	begin time.Time
	dir   string
	mesh  *mesh
	admin *coordinator.AdminClient
	nodes []*node.Node // as demoNodes

	edits *fsnotify.Watcher // of the ACL file; nil for --once
	seen  []byte            // its digest, as it was last read

	mu  sync.Mutex // guards web
	web []*http.Server
	wg  sync.WaitGroup
}

func (a *app) demo(ctx context.Context, f demoFlags) (err error) {
	d := &demo{begin: time.Now(), nodes: make([]*node.Node, len(demoNodes))}
	defer func() { err = errors.Join(err, d.close()) }()
	log, err := a.logger()
	if err != nil {
		return err
	}
	if err := d.start(ctx, f, log); err != nil {
		if ctx.Err() != nil {
			return nil // Ctrl-C before it was there
		}
		return err
	}
	m := d.probe(ctx, nil)
	if ctx.Err() != nil {
		return nil
	}
	if err := a.print(m, func(w io.Writer) { showDemo(w, d, m, !f.once) }); err != nil {
		return err
	}
	if f.once {
		return m.failure()
	}
	return a.follow(ctx, d, m)
}

// start brings everything up: the coordinator first, then the nodes side by side.
func (d *demo) start(ctx context.Context, f demoFlags, log zerolog.Logger) (err error) {
	if d.dir, err = os.MkdirTemp("", "hedge-demo-"); err != nil {
		return failed(fmt.Errorf("cannot make a temporary folder: %w", reason(err)), "set TMPDIR to a folder that can be written")
	}
	dd := dirs{d.dir, filepath.Join(d.dir, "run"), filepath.Join(d.dir, "acl.hujson")}
	if len(dd.adminSocket()) > hatch.MaxPath {
		return failed(fmt.Errorf("%s is too long for a socket's path", dd.adminSocket()), "set TMPDIR to a shorter path, /tmp say")
	}
	if f.acl == "" {
		err = os.WriteFile(dd.acl, demoPolicy, 0o600)
	} else if dd.acl, err = filepath.Abs(f.acl); err == nil {
		_, err = os.Stat(dd.acl)
	}
	if err != nil {
		return failed(fmt.Errorf("cannot use the ACL file %s: %w", dd.acl, reason(err)), "")
	}
	if err := dd.make(); err != nil {
		return err
	}
	if f.acl != "" {
		if src, err := os.ReadFile(dd.acl); err != nil {
			return failed(fmt.Errorf("cannot read the ACL file %s: %w", dd.acl, reason(err)), "")
		} else if _, err := checkACL(dd.acl, src, nil); err != nil {
			return err
		}
	}
	if !f.once {
		if err := d.watch(dd.acl); err != nil {
			return err
		}
	}
	if d.mesh, err = startMesh(ctx, meshConfig{listen: "127.0.0.1:0", dirs: dd, log: log}); err != nil {
		d.mesh = nil
		return err
	}
	d.admin = coordinator.NewAdminClient(dd.adminSocket())
	if _, err := d.admin.CreateUser(ctx, coordinator.CreateUserRequest{Login: demoUser}); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for i := range demoNodes {
		g.Go(func() error { return d.startNode(gctx, i, f.proxy, log) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return d.settled(ctx)
}

// startNode joins one node and starts its services.
func (d *demo) startNode(ctx context.Context, i int, proxy string, log zerolog.Logger) error {
	what := demoNodes[i]
	r := coordinator.CreateKeyRequest{User: demoUser, TTL: lineTTL}
	if what.tag != "" {
		r.User, r.Tags, proxy = "", []string{what.tag}, "off"
	}
	k, err := d.admin.CreateKey(ctx, r)
	if err != nil {
		return fmt.Errorf("admit %s: %w", what.name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	n, err := node.Start(ctx, node.Config{StateDir: filepath.Join(d.dir, what.name), Join: k.Join, Name: what.name, Proxy: proxy,
		LoopbackOnly: true, Version: buildInfo().Version, Log: log.With().Str("node", what.name).Logger()})
	if err != nil {
		return fmt.Errorf("start %s: %w", what.name, err)
	}
	d.nodes[i] = n
	for _, port := range what.ports {
		l, err := n.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return fmt.Errorf("listen on %s:%d: %w", what.name, port, err)
		}
		s := httpServer(demoService(n, what.name, port), log)
		d.serve(s, l)
	}
	return nil
}

// serve runs one service; nodes start side by side.
func (d *demo) serve(s *http.Server, l net.Listener) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.web = append(d.web, s)
	d.wg.Go(func() { s.Serve(l) })
}

// demoService answers with who it is and who asked.
func demoService(n *node.Node, name string, port uint16) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := r.RemoteAddr
		if ap, err := netip.ParseAddrPort(who); err == nil {
			for _, p := range n.Status().Peers {
				if slices.Contains(p.Addrs, ap.Addr()) {
					who = p.Name + " (" + owner(p.User, p.Tags) + ")"
				}
			}
		}
		fmt.Fprintf(w, "%s:%d says hello to %s\n", name, port, who)
	})
}

// settled waits until every node enforces the newest policy.
func (d *demo) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := d.admin.Status(ctx)
		if err == nil && s.Online == len(demoNodes) && s.Enforced == len(demoNodes) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("nodes do not enforce revision %d yet: %s", s.Revision, strings.Join(s.Behind, ", "))
			}
			return &fault{exitUnreachable, err, "run it again with --log-level debug to see why"}
		}
	}
}

// close ends everything and removes the temporary folder.
func (d *demo) close() error {
	if d.edits != nil {
		d.edits.Close()
	}
	for _, s := range d.web {
		s.Close()
	}
	var g errgroup.Group
	for _, n := range d.nodes {
		if n != nil {
			g.Go(n.Close)
		}
	}
	err := g.Wait()
	d.wg.Wait()
	if d.mesh != nil {
		err = errors.Join(err, d.mesh.Close())
	}
	if d.dir != "" {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	return err
}

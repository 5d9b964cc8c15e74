package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/coordinator"
	"github.com/hedge-mesh/hedge/node"
)

// settings are what hedge init decided once, so that it finds the same coordinator again.
type settings struct {
	Listen string   `json:"listen"`
	URLs   []string `json:"urls,omitempty"` // empty: this machine's addresses, whatever they are
	User   string   `json:"user"`
}

type initFlags struct {
	settings
	node       *nodeFlags
	qr         bool
	foreground bool
}

func (a *app) initCmd() *cobra.Command {
	f := initFlags{node: new(nodeFlags)}
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Begin a network on this machine, and print the line for the next one",
		Long: `Begins a network: makes a coordinator with a relay and STUN, a starter ACL file that lets one person's own devices reach
each other and nothing else, and this machine's node; starts them in the background; and prints the one line that lets
the next machine join, hedge up hedge1-…, good once and for ten minutes.

It is safe to run again: it keeps what there is, starts what is not running, and prints a new line. The flags are kept
from the first time; to change them, stop everything with hedge down --all and give the new ones.`,
		Example: `  hedge init
  hedge init --url https://hedge.example.com:7443     if others reach this machine by that name
  hedge init --qr --user alice@example.com
  hedge init --foreground                             until Ctrl-C, logging on stderr`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.init(cmd, f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.Listen, "listen", defaultListen, "`HOST:PORT` of the coordinator and relay, TCP and UDP")
	fs.StringSliceVar(&f.URLs, "url", nil, "`URL` by which other machines reach it; may be repeated (default: this machine's addresses)")
	fs.StringVar(&f.User, "user", "", "`LOGIN` of the first user (default: NAME@local of the one who runs this)")
	fs.BoolVar(&f.qr, "qr", false, "draw the line as a QR code too")
	fs.BoolVar(&f.foreground, "foreground", false, "stay, and log on stderr, until interrupted")
	f.node.add(cmd)
	return cmd
}

// initReport is what hedge init says.
type initReport struct {
	Already bool         `json:"already_initialised"`
	Join    string       `json:"join"` // a secret
	Expires time.Time    `json:"join_expires"`
	User    string       `json:"user"`
	Mesh    meshReady    `json:"coordinator"`
	Node    node.Status  `json:"node"`
	Took    node.Seconds `json:"took_seconds"`
	Logs    string       `json:"logs,omitempty"`
}

// starter is how init gets its two processes: in the background, or here.
type starter struct {
	mesh func(settings) (meshReady, error)
	node func(join string) (node.Status, error)
	wait func() error
	stop func()
}

func (a *app) init(cmd *cobra.Command, f initFlags) error {
	ctx := cmd.Context()
	if err := f.node.check(); err != nil {
		return err
	}
	d, err := a.madeDirs()
	if err != nil {
		return err
	}
	begin := time.Now()
	s, already, err := a.settle(cmd, d, f.settings)
	if err != nil {
		return err
	}
	if err := writeStarter(d, s.User); err != nil {
		return err
	}
	st := a.background(ctx, d, f.node)
	if f.foreground {
		st = a.here(ctx, d, f.node)
	}
	defer st.stop()
	r := initReport{Already: already, User: s.User}
	if r.Mesh, err = st.mesh(s); err != nil {
		return err
	}
	if s.Listen != r.Mesh.Listen && strings.HasSuffix(s.Listen, ":0") {
		s.Listen = r.Mesh.Listen // the free port it got is its port from now on
	}
	if err := s.write(d); err != nil {
		return err
	}
	if err := a.admit(ctx, d, s, st, &r); err != nil {
		return err
	}
	r.Took = node.Seconds(time.Since(begin))
	if !f.foreground {
		r.Logs = filepath.Dir(d.log("node"))
	}
	if err := a.print(r, func(w io.Writer) { showInit(w, r, f.qr) }); err != nil {
		return err
	}
	return st.wait()
}

// settle finds the settings of an earlier run, or those for a first one.
func (a *app) settle(cmd *cobra.Command, d dirs, asked settings) (s settings, already bool, err error) {
	b, err := os.ReadFile(d.settings())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if exists(d.node()) && !exists(d.database()) {
			return s, false, failed(fmt.Errorf("this machine is a member of a network already (%s)", d.node()), "leave it with hedge logout, or begin another network elsewhere with --state-dir DIR")
		}
		if asked.User == "" {
			asked.User = defaultUser()
		}
		return asked, false, nil
	case err != nil:
		return s, false, failed(fmt.Errorf("cannot read %s: %w", d.settings(), reason(err)), "run as the user that ran hedge init first")
	}
	if err := json.Unmarshal(b, &s); err != nil || s.Listen == "" || s.User == "" {
		return s, true, failed(fmt.Errorf("%s does not hold the settings of hedge init", d.settings()),
			`restore it, or write it anew: {"listen": "`+defaultListen+`", "user": "you@local"}`)
	}
	changed := func(flag string) bool { return cmd.Flags().Changed(flag) }
	if changed("user") && asked.User != s.User {
		return s, true, usage(fmt.Errorf("the first user is %s", s.User), "make another with hedge admin user create "+asked.User)
	}
	before := s
	if changed("listen") {
		s.Listen = asked.Listen
	}
	if changed("url") {
		s.URLs = asked.URLs
	}
	if s.Listen == before.Listen && slices.Equal(s.URLs, before.URLs) {
		return s, true, nil
	}
	if _, running := holder(d.lock("coordinator")); running {
		return before, true, usage(errors.New("the coordinator is running with its earlier --listen and --url"), "stop it first: hedge down --all")
	}
	return s, true, nil
}

func (s settings) write(d dirs) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		err = replace(d.settings(), append(b, '\n'))
	}
	if err != nil {
		return failed(fmt.Errorf("cannot write %s: %w", d.settings(), reason(err)), "")
	}
	return nil
}

func defaultUser() string {
	name := "me"
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username[strings.LastIndexByte(u.Username, '\\')+1:] // DOMAIN\user of Windows
	}
	return strings.ToLower(strings.ReplaceAll(name, " ", "-")) + "@local"
}

// writeStarter writes an ACL file where there is none.
func writeStarter(d dirs, login string) error {
	if exists(d.acl) {
		return nil
	}
	if err := writeNew(d.acl, []byte(coordinator.StarterPolicy(login))); err != nil {
		return failed(fmt.Errorf("cannot write the ACL file %s: %w", d.acl, reason(err)), "make its folder writable for this user, or choose another place with --state-dir DIR")
	}
	return nil
}

// admit makes the user, this machine's node, and the line for the next machine.
func (a *app) admit(ctx context.Context, d dirs, s settings, st starter, r *initReport) error {
	c := coordinator.NewAdminClient(d.adminSocket())
	users, err := c.Users(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(users, func(u coordinator.UserInfo) bool { return u.Login == s.User }) {
		if _, err := c.CreateUser(ctx, coordinator.CreateUserRequest{Login: s.User}); err != nil {
			return err
		}
	}
	newLine := func() (*coordinator.CreatedKey, error) {
		return c.CreateKey(ctx, coordinator.CreateKeyRequest{User: s.User, TTL: lineTTL})
	}
	if r.Node, err = st.node(""); err != nil {
		if code, _ := classify(err); code != exitNotConnected {
			return err
		}
		k, err := newLine()
		if err != nil {
			return err
		}
		if r.Node, err = st.node(k.Join); err != nil {
			return err
		}
	}
	k, err := newLine()
	if err != nil {
		return err
	}
	r.Join, r.Expires = k.Join, k.Expires
	return nil
}

// background starts what is not running as processes of their own.
func (a *app) background(ctx context.Context, d dirs, f *nodeFlags) starter {
	return starter{
		mesh: func(s settings) (m meshReady, err error) {
			if _, running := holder(d.lock("coordinator")); running {
				st, err := coordinator.NewAdminClient(d.adminSocket()).Status(ctx)
				if err != nil {
					return m, err
				}
				return meshReady{Listen: s.Listen, URLs: st.URLs, Control: st.Control.String(), ACL: d.acl}, nil
			}
			args := []string{"--listen", s.Listen, "--acl", d.acl, "--log-level", a.logLevel}
			for _, u := range s.URLs {
				args = append(args, "--url", u)
			}
			if a.stateDir != "" {
				args = append(args, "--state-dir", d.state)
			}
			return m, a.start(ctx, d, "coordinator", args, "", &m)
		},
		node: func(join string) (s node.Status, err error) {
			if s, err = node.NewLocalClient(d.nodeSocket()).Status(ctx); !notRunning(err) {
				return s, err
			}
			args := f.args(a)
			if join != "" {
				args = append(args, "--join-file", "-")
			}
			return s, a.start(ctx, d, "node", args, join, &s)
		},
		wait: func() error { return nil },
		stop: func() {},
	}
}

// here runs both in this process, until ctx is done or one of them ends.
func (a *app) here(ctx context.Context, d dirs, f *nodeFlags) starter {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 2)
	running := 0
	run := func(daemon func() error) {
		running++
		go func() { ended <- daemon() }()
	}
	stop := func() error {
		cancel()
		var errs []error
		for ; running > 0; running-- {
			errs = append(errs, <-ended)
		}
		return errors.Join(errs...)
	}
	return starter{
		mesh: func(s settings) (meshReady, error) {
			mf := meshFlags{listen: s.Listen, urls: s.URLs, acl: d.acl, relayLimits: relayLimits{maxClients: defaultClients}}
			c, err := mf.config(a)
			if err != nil {
				return meshReady{}, err
			}
			return await(ctx, ended, &running, run, func(ready func(meshReady)) error { return a.runCoordinator(ctx, c, ready) })
		},
		node: func(join string) (node.Status, error) {
			return await(ctx, ended, &running, run, func(ready func(node.Status)) error { return a.runNode(ctx, f, join, ready) })
		},
		wait: func() error {
			err := <-ended
			running--
			return errors.Join(err, stop())
		},
		stop: func() { stop() },
	}
}

// await runs a daemon and returns when it is ready, or with the error it ended with.
func await[T any](ctx context.Context, ended chan error, running *int, run func(func() error), daemon func(func(T)) error) (T, error) {
	ready := make(chan T, 1)
	run(func() error { return daemon(func(v T) { ready <- v }) })
	select {
	case v := <-ready:
		return v, nil
	case err := <-ended:
		*running--
		var none T
		if err == nil {
			err = context.Cause(ctx)
		}
		return none, err
	}
}

func showInit(w io.Writer, r initReport, qrCode bool) {
	what := "initialised"
	if r.Already {
		what = "was initialised already; running"
	}
	fmt.Fprintf(w, "%s, after %s\n", what, short(time.Duration(r.Took)))
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("this node", "%s  %s", r.Node.FullName, list(r.Node.Addrs))
	row("coordinator", "%s", strings.Join(r.Mesh.URLs, ", "))
	row("user", "%s", r.User)
	row("acl", "%s (edit it: changes apply at once)", r.Mesh.ACL)
	if r.Node.Proxy != "" {
		row("proxy", "%s (SOCKS5 and HTTP)", r.Node.Proxy)
	}
	if r.Logs != "" {
		row("logs", "%s", r.Logs)
	}
	fmt.Fprintf(w, "\nOn the next machine, within %s:\n\n  hedge up %s\n\n", span(time.Until(r.Expires).Round(time.Minute)), r.Join)
	if qrCode {
		showQR(w, r.Join)
	}
}

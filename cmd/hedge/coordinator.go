package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/node/key"
)

// meshFlags are those of hedge coordinator.
type meshFlags struct {
	listen, acl  string
	urls, relays []string
	noRelay      bool
	relayLimits
	insecureHTTP    bool
	tlsCert, tlsKey string
	metrics         string
}

func (f *meshFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.listen, "listen", defaultListen, "`HOST:PORT` to listen on, TCP and UDP; :PORT for all addresses")
	fs.StringSliceVar(&f.urls, "url", nil, "`URL` by which nodes reach this; may be repeated (default: this machine's addresses)")
	fs.StringVar(&f.acl, "acl", "", "ACL `FILE` (default: acl.hujson in the configuration folder)")
	fs.StringSliceVar(&f.relays, "relay", nil, "relay to use, as hedge relay prints it: `URL[,URL…]#relay:KEY`; may be repeated")
	fs.BoolVar(&f.noRelay, "no-relay", false, "run no relay and no STUN here")
	f.relayLimits.add(fs)
	fs.StringVar(&f.metrics, "metrics", "", metricsFlag)
	fs.StringVar(&f.tlsCert, "tls-cert", "", "PEM `FILE` of a certificate for the listener (default: self-signed, nodes trust the pinned key inside)")
	fs.StringVar(&f.tlsKey, "tls-key", "", "PEM `FILE` of its private key")
	fs.BoolVar(&f.insecureHTTP, "insecure-http", false, "serve HTTP without TLS, behind a proxy that ends TLS; what is inside is encrypted all the same")
}

// config is what the flags say.
func (f *meshFlags) config(a *app) (meshConfig, error) {
	c := meshConfig{listen: f.listen, urls: f.urls, noRelay: f.noRelay, insecureHTTP: f.insecureHTTP, tlsCert: f.tlsCert, tlsKey: f.tlsKey,
		metrics: f.metrics, limits: f.relayLimits}
	var err error
	if c.log, err = a.logger(); err != nil {
		return c, err
	}
	if c.dirs, err = a.dirs(); err != nil {
		return c, err
	}
	if f.acl != "" {
		if c.dirs.acl, err = filepath.Abs(f.acl); err != nil {
			return c, usage(fmt.Errorf("--acl %q: %w", f.acl, err), "")
		}
	}
	if err := checkListen(f.listen, f.tlsCert, f.tlsKey, f.urls); err != nil {
		return c, err
	}
	if err := f.relayLimits.check(); err != nil {
		return c, err
	}
	if err := checkMetrics(f.metrics); err != nil {
		return c, err
	}
	if c.relays, err = parseRelays(f.relays); err != nil {
		return c, err
	}
	seen := map[uint16]string{embeddedRelay: "the relay here"}
	for _, r := range c.relays {
		if other, ok := seen[r.ID]; ok {
			return c, usage(fmt.Errorf("--relay %s has the number %d, as has %s", r.URLs[0], r.ID, other),
				"give each relay once, with all its URLs: URL,URL#relay:KEY; if they are two, make a new key for one of them")
		}
		seen[r.ID] = r.URLs[0]
	}
	return c, nil
}

func (a *app) coordinatorCmd() *cobra.Command {
	var f meshFlags
	var printKey bool
	cmd := &cobra.Command{
		Use:   "coordinator",
		Short: "Run a coordinator in the foreground",
		Long: `Runs a coordinator in the foreground until it is interrupted: it admits nodes, keeps the network's state in SQLite,
reads the ACL file, and tells each node its part. A relay with STUN runs beside it unless --no-relay is given. Logs go
to stderr. hedge init does all of this, and more, for a first machine.

The ACL file is watched; SIGHUP reads it again at once. A file with errors never replaces a policy that stands: the log,
and hedge admin acl get, say what is wrong. Nothing is allowed while there is no file; hedge admin acl set FILE gives one.`,
		Example: `  hedge coordinator --listen :7443 --url https://hedge.example.com:7443
  hedge coordinator --no-relay --relay https://relay.example.com:7443#relay:…
  hedge coordinator --print-key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.config(a)
			if err != nil {
				return err
			}
			if err := c.dirs.make(); err != nil {
				return err
			}
			if printKey {
				control, _, err := openKeys(c.dirs)
				if err != nil {
					return err
				}
				return a.print(map[string]any{"control": key.PublicOf(control)}, func(w io.Writer) { fmt.Fprintln(w, key.PublicOf(control)) })
			}
			return a.runCoordinator(cmd.Context(), c, func(m meshReady) { a.ready(m) })
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&printKey, "print-key", false, "print the public key, for hedge relay --coordinator-key, and end")
	a.notifyFlag(cmd)
	return cmd
}

// runCoordinator is a coordinator until ctx is done.
func (a *app) runCoordinator(ctx context.Context, c meshConfig, ready func(meshReady)) error {
	release, err := claim(c.dirs.lock("coordinator"), "coordinator")
	if err != nil {
		return err
	}
	defer release()
	m, err := startMesh(ctx, c)
	if err != nil {
		return err
	}
	defer m.Close()
	m.log.Info().Str("listen", m.Listen).Strs("urls", m.URLs).Str("control", m.Control).Str("acl", m.ACL).Msg("coordinator is ready")
	ready(m.meshReady)
	if err := m.wait(ctx); err != nil {
		return err
	}
	return m.Close()
}

// wait returns when ctx is done or a listener has failed; until then each reload signal has the policy read again.
func (m *mesh) wait(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	if s := reloadSignals(); len(s) > 0 {
		signal.Notify(hup, s...)
		defer signal.Stop(hup)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-m.dead:
			return err
		case <-hup:
			err := m.server.Reload()
			if es := acl.Of(err); len(es) > 0 {
				m.log.Error().Str("errors", es.Render()).Msg("the ACL file has errors; the policy before it stays")
			} else if err != nil {
				m.log.Error().Err(err).Msg("the ACL file was not read; the policy before it stays")
			} else {
				m.log.Info().Msg("read the ACL file again")
			}
		}
	}
}

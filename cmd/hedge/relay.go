package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

// drainTime is how long a relay that is going away waits for its nodes to go elsewhere.
const drainTime = 10 * time.Second

// defaultClients is a relay's --max-clients.
const defaultClients = 10_000

// maxRate is more than any link's, and its bytes fit 31 bits.
const maxRate = 10_000

type relayFlags struct {
	listen, tlsCert, tlsKey string
	urls, coordinators      []string
	relayLimits
	metrics      string
	insecureHTTP bool
}

func (a *app) relayCmd() *cobra.Command {
	var f relayFlags
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Run a relay in the foreground",
		Long: `Runs a relay in the foreground until it is interrupted: it carries packets between nodes that have no direct path, and
answers STUN. Nodes reach it over TCP, and over UDP on the same port where that gets through. It is blind: what it
carries is encrypted end to end. It serves the nodes of the coordinators whose public keys it is given, and asks nobody;
hedge coordinator --print-key prints such a key.

When it has started it prints the line that hedge coordinator --relay takes, with all its URLs. On SIGTERM it tells its nodes to go
elsewhere and waits for them, ten seconds at most.`,
		Example: `  hedge relay --coordinator-key control:… --url https://relay.example.com:7443`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runRelay(cmd.Context(), f)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.listen, "listen", defaultListen, "`HOST:PORT` to listen on, TCP and UDP; :PORT for all addresses")
	fs.StringSliceVar(&f.coordinators, "coordinator-key", nil, "public `KEY` of a coordinator whose nodes are served: control:…; may be repeated")
	fs.StringSliceVar(&f.urls, "url", nil, "`URL` by which nodes reach this; may be repeated (default: this machine's addresses)")
	f.relayLimits.add(fs)
	fs.StringVar(&f.metrics, "metrics", "", metricsFlag)
	fs.StringVar(&f.tlsCert, "tls-cert", "", "PEM `FILE` of a certificate for the listener (default: self-signed by the relay's key)")
	fs.StringVar(&f.tlsKey, "tls-key", "", "PEM `FILE` of its private key")
	fs.BoolVar(&f.insecureHTTP, "insecure-http", false, "serve HTTP without TLS, behind a proxy that ends TLS")
	a.notifyFlag(cmd)
	return cmd
}

// relayLimits are what a relay carries at most.
type relayLimits struct{ maxClients, rate int }

func (l *relayLimits) add(fs *pflag.FlagSet) {
	fs.IntVar(&l.maxClients, "max-clients", defaultClients, "most `N` nodes at the relay at once")
	fs.IntVar(&l.rate, "rate", 0, "most `MBIT` a second that each node may send through the relay, the rest being dropped; 0 for no limit")
}

func (l *relayLimits) check() error {
	if l.maxClients < 1 {
		return usage(fmt.Errorf("--max-clients %d: there must be one at least", l.maxClients), "")
	}
	if l.rate < 0 || l.rate > maxRate {
		return usage(fmt.Errorf("--rate %d: want megabits a second, 0 to %d", l.rate, maxRate), "")
	}
	return nil
}

// bytes a second, of each node.
func (l *relayLimits) bytes() int { return l.rate * 125_000 }

func (f *relayFlags) check() (trust []key.ControlPublic, err error) {
	if len(f.coordinators) == 0 {
		return nil, usage(errors.New("--coordinator-key is missing: a relay serves only the nodes of coordinators it knows"),
			"hedge coordinator --print-key prints it, on the coordinator's machine")
	}
	for _, s := range f.coordinators {
		var k key.ControlPublic
		if err := k.UnmarshalText([]byte(s)); err != nil {
			return nil, usage(fmt.Errorf("--coordinator-key: %w", err), "hedge coordinator --print-key prints it, on the coordinator's machine")
		}
		trust = append(trust, k)
	}
	if err := f.relayLimits.check(); err != nil {
		return nil, err
	}
	if err := checkMetrics(f.metrics); err != nil {
		return nil, err
	}
	return trust, checkListen(f.listen, f.tlsCert, f.tlsKey, f.urls)
}

// runRelay is a relay until ctx is done.
func (a *app) runRelay(ctx context.Context, f relayFlags) error {
	trust, err := f.check()
	if err != nil {
		return err
	}
	log, d, err := a.station()
	if err != nil {
		return err
	}
	k, err := loadKey(d.relayKey(), key.ParseRelayPrivate, key.NewRelay)
	if err != nil {
		return err
	}
	l, pc, err := listen(ctx, f.listen, true)
	if err != nil {
		return err
	}
	defer l.Close()
	defer pc.Close()
	ml, err := listenMetrics(f.metrics)
	if err != nil {
		return err
	}
	if ml != nil {
		defer ml.Close()
	}
	s := derp.NewServer(derp.ServerConfig{Key: k, Trust: trust, UDP: true, MaxClients: f.maxClients, Rate: f.bytes(),
		Log: part(log, "relay")})
	defer s.Close()
	urls, scheme := f.urls, "https"
	if f.insecureHTTP {
		scheme = "http"
	}
	if len(urls) == 0 {
		urls = ownURLs(scheme, l.Addr())
	}
	if !f.insecureHTTP {
		cfg, err := outerTLS(f.tlsCert, f.tlsKey, s.TLSConfig)
		if err != nil {
			return err
		}
		l = tls.NewListener(l, cfg)
	}
	line := strings.Join(urls, ",") + "#" + key.PublicOf(k).String()
	if a.notify {
		a.ready(map[string]any{"relay": line, "urls": urls})
	} else if err := a.print(map[string]any{"relay": line, "urls": urls}, func(w io.Writer) { fmt.Fprintln(w, line) }); err != nil {
		return err
	}
	log.Info().Strs("urls", urls).Str("relay", key.PublicOf(k).String()).Int("coordinators", len(trust)).Msg("relay is ready")
	return serveRelay(ctx, log, s, l, pc, ml)
}

// serveRelay serves on sockets that listen already, metrics where there is one for them, until ctx is done and the nodes have
// gone elsewhere, or one of them fails.
func serveRelay(ctx context.Context, log zerolog.Logger, s *derp.Server, l net.Listener, pc net.PacketConn, ml net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle(derp.Path, s)
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	web := httpServer(mux, log)
	counts := httpServer(metricsHandler(func(m *metrics) { m.relay(s.Stats()) }), log)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return unlessClosed(web.Serve(l)) })
	g.Go(func() error { return s.ServeUDP(pc) })
	if ml != nil {
		g.Go(func() error { return unlessClosed(counts.Serve(ml)) })
	}
	<-gctx.Done()
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	if ctx.Err() != nil {
		left := s.Drain(draining)
		log.Info().Int("left", left).Msg("relay is going away")
	}
	cancel()
	web.Close()
	counts.Close()
	pc.Close()
	s.Close()
	return g.Wait()
}

func unlessClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

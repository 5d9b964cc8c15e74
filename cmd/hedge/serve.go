package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/hedge-mesh/hedge/coordinator"
	"github.com/hedge-mesh/hedge/coordinator/store"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

// mesh is a coordinator with its relay, STUN and admin socket in this process:
//
//	TCP ─ TLS ─ HTTP ─┬─ /relay ────────────────────── derp.Server
//	                  └─ /control /healthz /readyz ─── coordinator.Server ── store (SQLite)
//	UDP ── derp.Server, STUN                                │
//	unix socket ── admin API ───────────────────────────────┘
type mesh struct {
	meshReady
	server *coordinator.Server
	relay  *derp.Server // nil without one
	store  store.Store
	log    zerolog.Logger

	stop []func() // in the order in which they must run
	wg   sync.WaitGroup
	dead chan error // the first listener that failed
}

// meshReady is what others need to know of a coordinator that runs.
type meshReady struct {
	Listen  string   `json:"listen"`
	URLs    []string `json:"urls"`
	Control string   `json:"control"`         // public key: the pin
	Relay   string   `json:"relay,omitempty"` // URL#key, for other coordinators
	ACL     string   `json:"acl"`
}

// meshConfig is what a coordinator is started with.
type meshConfig struct {
	listen          string
	urls            []string // empty: this machine's own
	relays          []wire.Relay
	noRelay         bool // no relay here
	limits          relayLimits
	insecureHTTP    bool
	tlsCert, tlsKey string
	metrics         string // HOST:PORT, empty for none
	dirs            dirs
	log             zerolog.Logger
}

// openKeys reads the coordinator's keys. A database without its control key is a coordinator that no node would
// believe, so it does not start.
func openKeys(d dirs) (control key.ControlPrivate, relay key.RelayPrivate, err error) {
	if exists(d.database()) && !exists(d.controlKey()) {
		return control, relay, failed(fmt.Errorf("%s is there but its key %s is gone", d.database(), d.controlKey()),
			"restore the key from a backup: without it no node believes this coordinator. To begin a new network, move the database away")
	}
	if control, err = loadKey(d.controlKey(), key.ParseControlPrivate, key.NewControl); err != nil {
		return control, relay, err
	}
	relay, err = loadKey(d.relayKey(), key.ParseRelayPrivate, key.NewRelay)
	return control, relay, err
}

// startMesh starts a coordinator; Close ends it. Whatever fails, nothing stays behind.
func startMesh(ctx context.Context, c meshConfig) (m *mesh, err error) {
	m = &mesh{log: c.log, dead: make(chan error, 4)}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	control, relayKey, err := openKeys(c.dirs)
	if err != nil {
		return m, err
	}
	l, pc, err := listen(ctx, c.listen, !c.noRelay)
	if err != nil {
		return m, err
	}
	plain := l
	m.stop = append(m.stop, func() { plain.Close() })
	if pc != nil {
		m.stop = append(m.stop, func() { pc.Close() })
	}
	if m.store, err = store.OpenSQLite(c.dirs.database()); err != nil {
		return m, err
	}
	m.describe(c, l.Addr(), key.PublicOf(control), key.PublicOf(relayKey))
	m.relay = derp.NewServer(derp.ServerConfig{Key: relayKey, Trust: []key.ControlPublic{key.PublicOf(control)}, UDP: true,
		MaxClients: c.limits.maxClients, Rate: c.limits.bytes(), Log: part(c.log, "relay")})
	relays := c.relays
	if !c.noRelay {
		relays = append([]wire.Relay{{ID: embeddedRelay, Key: key.PublicOf(relayKey), URLs: m.URLs, STUN: stunOf(m.URLs, port(pc.LocalAddr()))}}, relays...)
	}
	m.server, err = coordinator.New(coordinator.Config{Store: m.store, Control: control, PolicyFile: c.dirs.acl, URLs: m.URLs, Relays: relays,
		Kick: m.relay.Kick, Log: part(c.log, "coordinator")})
	if err != nil {
		return m, err
	}
	if !c.insecureHTTP {
		cfg, err := outerTLS(c.tlsCert, c.tlsKey, m.relay.TLSConfig)
		if err != nil {
			return m, err
		}
		l = tls.NewListener(l, cfg)
	}
	mux := http.NewServeMux()
	mux.Handle("/", m.server.Handler())
	if !c.noRelay {
		mux.Handle(derp.Path, m.relay)
		m.serve("relay's UDP", func() error { return m.relay.ServeUDP(pc) })
	}
	m.stop = append(m.stop, m.http(l, mux))
	if ml, err := listenMetrics(c.metrics); err != nil {
		return m, err
	} else if ml != nil {
		m.stop = append(m.stop, m.http(ml, metricsHandler(func(w *metrics) { w.relay(m.relay.Stats()) })))
	}
	return m, m.admin(c.dirs.adminSocket())
}

// admin serves the admin API.
func (m *mesh) admin(socket string) error {
	l, err := coordinator.ListenAdmin(socket)
	if err != nil {
		return err
	}
	m.stop = append(m.stop, func() { l.Close() })
	m.serve("admin API", func() error { return m.server.ServeAdmin(l) })
	return nil
}

func (m *mesh) describe(c meshConfig, l net.Addr, control key.ControlPublic, relay key.RelayPublic) {
	scheme := "https"
	if c.insecureHTTP {
		scheme = "http"
	}
	urls := c.urls
	if len(urls) == 0 {
		urls = ownURLs(scheme, l)
	}
	m.meshReady = meshReady{Listen: l.String(), URLs: urls, Control: control.String(), ACL: c.dirs.acl}
	if !c.noRelay {
		m.Relay = urls[0] + "#" + relay.String()
	}
}

// serve runs one of the mesh's servers until it ends, and reports an end that nobody asked for.
func (m *mesh) serve(what string, f func() error) {
	m.wg.Go(func() {
		if err := f(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
			select {
			case m.dead <- fmt.Errorf("%s: %w", what, err):
			default: // one reason is enough
			}
		}
	})
}

// http serves h on l and returns what ends it.
func (m *mesh) http(l net.Listener, h http.Handler) (stop func()) {
	s := httpServer(h, m.log)
	m.serve("listener", func() error { return s.Serve(l) })
	return func() { s.Close() }
}

// httpServer is an HTTP server that strangers may talk to. What they do wrong is not worth more than a debug line.
func httpServer(h http.Handler, l zerolog.Logger) *http.Server {
	l = part(l, "http")
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ConnState: derp.Strangers(derp.MaxStrangers), ErrorLog: log.New(debugLines{l}, "", 0)}
}

// debugLines logs what net/http says at the level of debugging.
type debugLines struct{ log zerolog.Logger }

func (d debugLines) Write(b []byte) (int, error) {
	d.log.Debug().Msg(string(b))
	return len(b), nil
}

// Close ends all of it and waits.
func (m *mesh) Close() error {
	for _, stop := range m.stop {
		stop()
	}
	var errs []error
	if m.server != nil {
		errs = append(errs, m.server.Close())
	}
	if m.relay != nil {
		errs = append(errs, m.relay.Close())
	}
	m.wg.Wait()
	if m.store != nil {
		errs = append(errs, m.store.Close())
	}
	return errors.Join(errs...)
}

func part(l zerolog.Logger, name string) zerolog.Logger { return l.With().Str("part", name).Logger() }

func port(a net.Addr) uint16 {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return 0
	}
	return ap.Port()
}

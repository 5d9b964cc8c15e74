package derp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/gorilla/websocket"

	"github.com/hedge-mesh/hedge/node/key"
)

// clockError is a relay's refusal that says what its clock shows.
type clockError struct {
	*RefusedError
	ahead time.Duration // the relay's clock of ours
}

func (e *clockError) Unwrap() error { return e.RefusedError }

// dial makes one connection to one of the relay's URLs. ahead is by how much the relay's clock is ahead of ours; heard is how
// many messages came by a connection that is lost, 0 for none.
func dial(ctx context.Context, cfg *ClientConfig, rawURL string, ticket []byte, ahead time.Duration, heard uint64) (*websocket.Conn, error) {
	if len(ticket) == 0 {
		return nil, ErrNoTicket
	}
	u, err := relayURL(rawURL)
	if err != nil {
		return nil, err
	}
	stop := func() bool { return true }
	d := websocket.Dialer{
		Proxy:           cfg.Proxy,
		TLSClientConfig: clientTLS(cfg.Key, u.Hostname(), nil),
		ReadBufferSize:  4 << 10,    // messages are read past it
		WriteBufferSize: MaxMessage, // a whole message, so that it leaves in one write
		WriteBufferPool: &writeBuffers,
		Subprotocols:    []string{Subprotocol},
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := cfg.Dial(ctx, network, addr)
			if err == nil {
				tune(c)
				stop = context.AfterFunc(ctx, func() { c.Close() }) // Dialer itself heeds only the deadline
			}
			return c, err
		},
	}
	now := time.Now()
	h := http.Header{"Authorization": {newProof(cfg.Key, ticket, cfg.Machine, now.Add(ahead))}}
	if heard > 0 {
		h.Set(heardHeader, strconv.FormatUint(heard, 10))
	}
	ws, resp, err := d.DialContext(ctx, u.String(), h)
	if err == nil {
		err = welcomed(ws)
	}
	switch gone := !stop(); {
	case err != nil && ws != nil:
		ws.NetConn().Close()
	case errors.Is(err, websocket.ErrBadHandshake) && resp != nil:
		return nil, refused(rawURL, resp, now)
	case err == nil && gone:
		err = context.Cause(ctx) // and the connection is closed
	case err == nil:
		return ws, nil
	}
	return nil, fmt.Errorf("derp: %s: %w", rawURL, err)
}

// welcomed waits for the relay's first message, which follows its answer to the upgrade request at once.
func welcomed(ws *websocket.Conn) error {
	if ws.Subprotocol() != Subprotocol {
		return fmt.Errorf("what answers is a WebSocket but not a relay that speaks %s", Subprotocol)
	}
	ws.SetReadLimit(MaxMessage)
	kind, r, err := ws.NextReader()
	if err != nil {
		return readError(err)
	}
	msg, err := io.ReadAll(r)
	if err != nil {
		return readError(err)
	}
	if kind != websocket.BinaryMessage || !bytes.Equal(msg, welcome) {
		return errors.New("what answers is not a relay: it does not begin with a welcome")
	}
	return nil
}

// refused makes an error of an answer that is not an upgrade. Its text comes from a stranger.
func refused(rawURL string, resp *http.Response, now time.Time) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
	e := &RefusedError{URL: rawURL, Status: resp.StatusCode, Reason: oneLine(string(text))}
	ms, err := strconv.ParseInt(resp.Header.Get(timeHeader), 10, 64)
	if resp.StatusCode != http.StatusUnauthorized || err != nil || ms < 0 || ms > maxMilli {
		return e
	}
	return &clockError{e, time.UnixMilli(ms).Sub(now)}
}

// oneLine makes a stranger's text fit for a log or a terminal.
func oneLine(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// relayURL turns a relay's http or https URL into that of its WebSocket.
func relayURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("derp: relay URL: %w", err)
	}
	switch u.Scheme {
	case "https", "wss":
		u.Scheme = "wss"
	case "http", "ws":
		u.Scheme = "ws"
	default:
		return nil, fmt.Errorf("derp: relay URL %q: want https://host:port or http://host:port", raw)
	}
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("derp: relay URL %q: want a host, and at most a path after it", raw)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = Path
	}
	return u, nil
}

// clientTLS takes the relay's own certificate, or one that the system (or roots, if not nil) trusts for host.
func clientTLS(relay key.RelayPublic, host string, roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		ServerName:                  host,
		NextProtos:                  []string{"http/1.1"}, // WebSocket needs it
		MinVersion:                  tls.VersionTLS12,     // of a proxy; relays speak 1.3
		DynamicRecordSizingDisabled: true,
		InsecureSkipVerify:          true, // VerifyConnection verifies
		VerifyConnection: func(cs tls.ConnectionState) error {
			var pinned func([]*x509.Certificate) (key.RelayPublic, error) = key.FromCertificate
			if k, err := pinned(cs.PeerCertificates); err == nil && !relay.IsZero() && k == relay {
				return nil
			}
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the server sent no certificate")
			}
			opt := x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: x509.NewCertPool()}
			for _, c := range cs.PeerCertificates[1:] {
				opt.Intermediates.AddCert(c)
			}
			if _, err := cs.PeerCertificates[0].Verify(opt); err != nil {
				return fmt.Errorf("the server at %s is neither the relay %s nor certified for its name: %w", host, relay.Short(), err)
			}
			return nil
		},
	}
}

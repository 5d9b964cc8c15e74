package node

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/portmap"
)

// PortMapping is what the gateway does for this node.
type PortMapping struct {
	Gateway  string            `json:"gateway,omitempty"`
	Protocol string            `json:"protocol,omitempty"` // "PCP", "NAT-PMP" or "UPnP"; empty without a mapping
	External string            `json:"external,omitempty"` // what it forwards to us
	Expires  time.Time         `json:"expires,omitzero"`
	Works    bind.Finding      `json:"works"` // whether packets come through; unknown behind a second NAT
	Refused  map[string]string `json:"refused,omitempty"`
	Note     string            `json:"note,omitempty"`
}

// mapPort has the gateway forward our port, and tells peers of it.
func (n *Node) mapPort() {
	if n.cfg.LoopbackOnly || n.cfg.NoPortMapping {
		return
	}
	n.portmap.Store(portmap.Start(portmap.Config{Port: n.bind.Port(), Changed: func(m portmap.Mapping) {
		if m.Valid() {
			n.log.Info().Stringer("external", m.External).Stringer("by", m.Protocol).Msg("the gateway forwards a port")
		}
		n.bind.SetMapped(m.External)
	}}))
}

// moved is told that this machine's addresses changed.
func (n *Node) moved() {
	if p := n.portmap.Load(); p != nil {
		p.Refresh()
	}
}

// deaf is told that nothing comes through a port that the gateway says it forwards.
func (n *Node) deaf(at netip.AddrPort) {
	if p := n.portmap.Load(); p != nil && p.Report().Mapping.External == at {
		n.log.Info().Stringer("external", at).Msg("the gateway does not forward the port that it said it would")
		p.Distrust()
	}
}

func (n *Node) portMapping(nat bind.NAT) PortMapping {
	p := n.portmap.Load()
	switch {
	case n.cfg.NoPortMapping:
		return PortMapping{Note: "turned off"}
	case p == nil:
		return PortMapping{Note: "not asked for on loopback"}
	}
	r := p.Report()
	out := PortMapping{}
	if !r.Gateway.IsValid() {
		out.Note = "there is no gateway"
		return out
	}
	out.Gateway = r.Gateway.String()
	if r.Mapping.Valid() {
		out.Protocol, out.External, out.Expires = r.Mapping.Protocol.String(), r.Mapping.External.String(), r.Mapping.Expires
		if nat.Forwarded == r.Mapping.External {
			out.Works = nat.Forwards
		}
	}
	if r.Distrusted {
		out.Works, out.Note = bind.No, "the gateway said it forwards a port, and nothing came through; it is asked again when the network changes"
	}
	for by, err := range r.Errors {
		if out.Refused == nil {
			out.Refused = map[string]string{}
		}
		out.Refused[by.String()] = err.Error()
	}
	return out
}

// captive looks whether somebody else answers in a relay's place: a hotel's or a station's network that wants to be
// agreed with first. It asks the relays that are not connected, for what a relay of ours answers.
func captive(ctx context.Context, relays []RelayCheck) (where string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	hc := http.Client{
		// Only whether the answer is ours is asked, and nothing is told: who stands in between shows by what it says.
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for _, r := range relays {
		u, err := url.Parse(r.URL)
		if err != nil || r.Connected || u.Host == "" {
			continue
		}
		u.Scheme = strings.NewReplacer("wss", "https", "ws", "http").Replace(u.Scheme)
		u.Path, u.RawQuery = "/healthz", ""
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			continue
		}
		resp, err := hc.Do(req)
		if err != nil {
			continue
		}
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 16))
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || string(b) != "ok\n" {
			return u.Host
		}
	}
	return ""
}

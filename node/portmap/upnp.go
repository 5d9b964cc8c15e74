package portmap

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
)

// upnp asks by UPnP's Internet Gateway Device (versions 1 and 2). The search goes to everybody, as it must, and only
// the gateway's own answer is taken; what is then fetched is fetched from the gateway's address, and bounded.
type upnp struct {
	ssdp netip.AddrPort // to search at instead of the multicast group and the gateway, in tests
}

const (
	ssdpPort = 1900
	ssdpMax  = 2048    // bytes of an answer
	upnpMax  = 1 << 18 // bytes of a document
	upnpName = "hedge"
)

func (*upnp) kind() Protocol { return UPnP }

// wan is what the kinds of connection services have in common.
type wan interface {
	AddPortMappingCtx(ctx context.Context, remoteHost string, externalPort uint16, protocol string, internalPort uint16, internalClient string, enabled bool, description string, lease uint32) error
	DeletePortMappingCtx(ctx context.Context, remoteHost string, externalPort uint16, protocol string) error
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
}

func (u *upnp) mapPort(ctx context.Context, gw Gateway, port, external uint16, lifetime time.Duration) (at netip.AddrPort, lease time.Duration, err error) {
	if at, lease, err = u.ask(ctx, gw, port, external, lifetime); err != nil {
		err = plain{err}
	}
	return at, lease, err
}

// plain is an error that has a gateway's own words in it, fit to be shown: without what would move a terminal, and short.
type plain struct{ error }

const plainMax = 200 // characters

func (p plain) Unwrap() error { return p.error }

func (p plain) Error() string {
	var b strings.Builder
	n := 0
	for _, r := range p.error.Error() {
		if n++; n > plainMax {
			return b.String() + "…"
		}
		if !unicode.IsPrint(r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

func (u *upnp) ask(ctx context.Context, gw Gateway, port, external uint16, lifetime time.Duration) (netip.AddrPort, time.Duration, error) {
	var none netip.AddrPort
	at, err := u.search(ctx, gw)
	if err != nil {
		return none, 0, err
	}
	svc, err := describe(ctx, gw, at)
	if err != nil {
		return none, 0, err
	}
	if lifetime == 0 {
		return none, 0, svc.DeletePortMappingCtx(ctx, "", external, "UDP")
	}
	ip, err := svc.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return none, 0, fmt.Errorf("the gateway does not say its address: %w", err)
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return none, 0, fmt.Errorf("the gateway's address %q is none", ip[:min(len(ip), 40)])
	}
	if external == 0 {
		external = port
	}
	for try := 0; ; try++ {
		lease := lifetime
		err = svc.AddPortMappingCtx(ctx, "", external, "UDP", port, gw.Self.String(), true, upnpName, uint32(lease/time.Second))
		if err != nil { // some know only leases without end: 725 OnlyPermanentLeasesSupported
			err = svc.AddPortMappingCtx(ctx, "", external, "UDP", port, gw.Self.String(), true, upnpName, 0)
		}
		if err == nil {
			return netip.AddrPortFrom(addr.Unmap(), external), lease, nil
		}
		if try == 2 || ctx.Err() != nil {
			return none, 0, fmt.Errorf("the gateway refused: %w", err)
		}
		external = uint16(20000 + rand.N(40000)) // 718 ConflictInMappingEntry: somebody else's
	}
}

// search finds where the gateway describes itself (UPnP Device Architecture 1.1 section 1.3.2).
func (u *upnp) search(ctx context.Context, gw Gateway) (*url.URL, error) {
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(gw.Self, 0)))
	if err != nil {
		return nil, err
	}
	defer pc.Close()
	defer context.AfterFunc(ctx, func() { pc.Close() })() // at once
	to := []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{239, 255, 255, 250}), ssdpPort), netip.AddrPortFrom(gw.Router, ssdpPort)}
	if u.ssdp.IsValid() {
		to = []netip.AddrPort{u.ssdp}
	}
	buf := make([]byte, ssdpMax)
	for wait := 300 * time.Millisecond; ctx.Err() == nil && wait < 3*time.Second; wait *= 2 {
		for _, a := range to {
			req := fmt.Sprintf("M-SEARCH * HTTP/1.1\r\nHOST: %s\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n", to[0])
			_, _ = pc.WriteToUDPAddrPort([]byte(req), a) // searched for again
		}
		pc.SetReadDeadline(time.Now().Add(wait))
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				break
			}
			if from.Addr().Unmap() != gw.Router {
				continue
			}
			if at, ok := locationOf(buf[:n]); ok && isAt(at, gw.Router) {
				return at, nil
			}
		}
	}
	return nil, errSilent
}

// locationOf reads an answer to a search.
func locationOf(b []byte) (*url.URL, bool) {
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), nil)
	if err != nil {
		return nil, false
	}
	r.Body.Close()
	at, err := r.Location()
	return at, err == nil && r.StatusCode == http.StatusOK
}

// isAt reports whether a URL is plain HTTP at an address.
func isAt(u *url.URL, a netip.Addr) bool {
	host, err := netip.ParseAddr(u.Hostname())
	return err == nil && u.Scheme == "http" && host.Unmap() == a
}

var errElsewhere = errors.New("the gateway names another machine")

// describe fetches what the gateway says of itself, and finds the service to ask.
func describe(ctx context.Context, gw Gateway, at *url.URL) (wan, error) {
	hc := http.Client{
		Transport:     only{gw.Router, &http.Transport{DisableKeepAlives: true}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errElsewhere },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the gateway does not describe itself: %s", resp.Status)
	}
	root, err := parseDevice(resp.Body, at)
	if err != nil {
		return nil, err
	}
	for _, kind := range []string{internetgateway2.URN_WANIPConnection_2, internetgateway2.URN_WANIPConnection_1, internetgateway2.URN_WANPPPConnection_1} {
		all := root.Device.FindService(kind)
		if len(all) == 0 {
			continue
		}
		c := goupnp.ServiceClient{SOAPClient: all[0].NewSOAPClient(), RootDevice: root, Location: at, Service: all[0]}
		if c.SOAPClient.HTTPClient = hc; !isAt(&c.SOAPClient.EndpointURL, gw.Router) {
			return nil, errElsewhere
		}
		switch kind {
		case internetgateway2.URN_WANIPConnection_2:
			return &internetgateway2.WANIPConnection2{ServiceClient: c}, nil
		case internetgateway2.URN_WANIPConnection_1:
			return &internetgateway2.WANIPConnection1{ServiceClient: c}, nil
		}
		return &internetgateway2.WANPPPConnection1{ServiceClient: c}, nil
	}
	return nil, errors.New("the gateway offers no port mapping")
}

func parseDevice(r io.Reader, at *url.URL) (*goupnp.RootDevice, error) {
	root := &goupnp.RootDevice{}
	d := xml.NewDecoder(io.LimitReader(r, upnpMax))
	d.DefaultSpace = goupnp.DeviceXMLNamespace
	if err := d.Decode(root); err != nil {
		return nil, fmt.Errorf("the gateway's description does not read: %w", err)
	}
	base := at
	if root.URLBaseStr != "" {
		b, err := url.Parse(root.URLBaseStr)
		if err != nil {
			return nil, fmt.Errorf("the gateway's description does not read: %w", err)
		}
		base = b
	}
	root.SetURLBase(base)
	return root, nil
}

// only is HTTP with one address, by no proxy, with bounded answers.
type only struct {
	addr netip.Addr
	rt   http.RoundTripper
}

func (o only) RoundTrip(r *http.Request) (*http.Response, error) {
	if !isAt(r.URL, o.addr) {
		return nil, errElsewhere
	}
	resp, err := o.rt.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, upnpMax), resp.Body}
	}
	return resp, err
}

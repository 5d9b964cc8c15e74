package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

// defaultListen is where a coordinator and a relay listen: TCP, and UDP of the same number for STUN.
const defaultListen = ":7443"

// listen opens addr for TCP and, if stun is set, the same port for UDP.
func listen(ctx context.Context, addr string, stun bool) (net.Listener, net.PacketConn, error) {
	lc := net.ListenConfig{Control: derp.LimitSegments}
	for try := 0; ; try++ {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, nil, busy(addr, "TCP", err)
		}
		if !stun {
			return l, nil, nil
		}
		pc, err := lc.ListenPacket(ctx, "udp", l.Addr().String())
		if err == nil {
			return l, pc, nil
		}
		l.Close()
		if _, port, _ := net.SplitHostPort(addr); port != "0" || try == 10 { // of free ports, another may be free in both
			return nil, nil, busy(addr, "UDP", err)
		}
	}
}

// busy says what to do about a port that cannot be had.
func busy(addr, proto string, err error) error {
	_, port, _ := net.SplitHostPort(addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		flag := "-ltnp"
		if proto == "UDP" {
			flag = "-lunp"
		}
		return failed(fmt.Errorf("port %s (%s) is in use by another program", port, proto),
			fmt.Sprintf("ss %s 'sport = :%s' shows which one; stop it, or choose another port with --listen HOST:PORT", flag, port))
	case errors.Is(err, syscall.EACCES):
		return failed(fmt.Errorf("this user may not listen on %s (%s)", addr, proto), "choose a port over 1023 with --listen HOST:PORT")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return failed(fmt.Errorf("%s is no address of this machine", addr), "choose one of its own with --listen HOST:PORT, or :PORT for all")
	}
	return failed(fmt.Errorf("cannot listen on %s (%s): %w", addr, proto, err), "choose another address with --listen HOST:PORT")
}

// outerTLS is the listener's TLS: the operator's certificate if there is one, else one of the given key. Nodes trust
// neither: they prove the coordinator by the pin inside, and the relay by its key.
func outerTLS(certFile, keyFile string, own func() (*tls.Config, error)) (*tls.Config, error) {
	var cfg *tls.Config
	if certFile == "" {
		c, err := own()
		if err != nil {
			return nil, err
		}
		cfg = c.Clone()
	} else {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, failed(fmt.Errorf("cannot use the certificate %s with %s: %w", certFile, keyFile, err), "")
		}
		cfg = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	cfg.NextProtos = []string{"http/1.1"} // a WebSocket upgrade is of HTTP/1.1
	return cfg, nil
}

// checkListen tells mistakes in the flags of a listener before anything is done.
func checkListen(addr, certFile, keyFile string, urls []string) error {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return usage(fmt.Errorf("--listen %q is no address: %w", addr, err), "write it as HOST:PORT, or :PORT for all addresses")
	}
	if (certFile == "") != (keyFile == "") {
		return usage(errors.New("--tls-cert and --tls-key belong together"), "")
	}
	for _, u := range urls {
		if err := checkURL(u); err != nil {
			return err
		}
	}
	return nil
}

// ownURLs are those by which other machines reach a listener: its own address, or if it listens on all, each of this
// machine's, that of the default route first.
func ownURLs(scheme string, l net.Addr) []string {
	ap, err := netip.ParseAddrPort(l.String())
	if err != nil {
		return []string{scheme + "://" + l.String()}
	}
	hosts := []netip.Addr{ap.Addr().Unmap()}
	if ap.Addr().IsUnspecified() {
		hosts = machineAddrs()
	}
	var urls []string
	for _, h := range hosts {
		urls = append(urls, scheme+"://"+netip.AddrPortFrom(h, ap.Port()).String())
	}
	return urls
}

// maxURLs bounds a join string, which people copy and scan.
const maxURLs = 4

func machineAddrs() []netip.Addr {
	var addrs []netip.Addr
	if c, err := net.Dial("udp", "192.0.2.1:9"); err == nil { // sends nothing: asks for the route (RFC 5737 address)
		addrs = append(addrs, c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap())
		c.Close()
	}
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if ip := p.Addr().Unmap(); err == nil && ip.IsGlobalUnicast() && !slices.Contains(addrs, ip) && len(addrs) < maxURLs {
			addrs = append(addrs, ip)
		}
	}
	if len(addrs) == 0 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	return addrs
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return usage(fmt.Errorf("%q is no URL of a coordinator or relay", s), "write it as https://HOST:PORT")
	}
	return nil
}

// stunOf are the STUN servers beside a relay: its hosts, with the port given, or with the URL's own for 0.
func stunOf(urls []string, port uint16) []string {
	var out []string
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil {
			continue
		}
		p := u.Port()
		switch {
		case port != 0:
			p = strconv.Itoa(int(port))
		case p == "" && u.Scheme == "http":
			p = "80"
		case p == "":
			p = "443"
		}
		out = append(out, net.JoinHostPort(u.Hostname(), p))
	}
	return out
}

// parseRelays reads relays as hedge relay prints them: https://HOST:PORT[,https://HOST:PORT…]#relay:KEY. A list that a
// flag or a variable has split at its commas is put together again: what has no key belongs to the next.
func parseRelays(list []string) (relays []wire.Relay, err error) {
	var urls []string
	for _, s := range list {
		addr, fragment, ok := strings.Cut(s, "#")
		if err := checkURL(addr); err != nil {
			return nil, err
		}
		if urls = append(urls, addr); !ok {
			continue
		}
		r, err := parseRelay(urls, fragment)
		if err != nil {
			return nil, err
		}
		relays, urls = append(relays, r), nil
	}
	if len(urls) > 0 {
		return nil, usage(fmt.Errorf("--relay %q has no key", strings.Join(urls, ",")), relayLine)
	}
	return relays, nil
}

const relayLine = "copy the line that hedge relay printed when it started: https://HOST:PORT#relay:…"

// parseRelay makes a relay of its URLs and its key. Its number comes from the key, so that it stays the same however the
// list is written.
func parseRelay(urls []string, fragment string) (wire.Relay, error) {
	var k key.RelayPublic
	if err := k.UnmarshalText([]byte(fragment)); err != nil {
		return wire.Relay{}, usage(fmt.Errorf("--relay %q: %w", strings.Join(urls, ",")+"#"+fragment, err), relayLine)
	}
	raw := k.Raw()
	id := uint16(raw[0])<<8 | uint16(raw[1])
	return wire.Relay{ID: max(id, embeddedRelay+1), Key: k, URLs: urls, STUN: stunOf(urls, 0)}, nil
}

// embeddedRelay is the number of the coordinator's own relay.
const embeddedRelay = 1

package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// exitNames is where an exit answers questions of the DNS (RFC 1035) for those that use it, on UDP port 53: an address that
// nobody has (RFC 5737), so that a rule for the internet is one for it and no packet to it ever leaves an exit.
//
//	alice: names of the proxy's clients ── UDP 192.0.2.53:53 ── tunnel, filters ── exit: carry ── answerNames ── its resolver
//
// The exit asks as any program of its machine would, and tells only what is of the internet: names of networks around it
// have no address here, and how the exit knows a name is not told either.
var exitNames = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 53}), 53)

const (
	namesTimeout = 5 * time.Second
	namesAtOnce  = 16 // questions of one flow
	namesInAll   = 256
	namesTTL     = 60  // seconds: Go's resolver does not tell what it was
	maxQuestion  = 512 // bytes (RFC 1035 section 4.2.1)
)

// lookup is (*net.Resolver).LookupNetIP.
type lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

// carryNames is the connection of a flow to exitNames.
func (n *Node) carryNames(network string) (net.Conn, error) {
	if network != "udp" {
		return nil, errors.New("names are asked for by UDP")
	}
	mine, theirs := net.Pipe()
	n.run.Go(func() { serveNames(theirs, n.asking, n.find) }) // until the flow ends
	return mine, nil
}

// serveNames answers the questions that come by a connection until it ends. asking bounds those of all connections.
func serveNames(c net.Conn, asking chan struct{}, find lookup) {
	ctx, cancel := context.WithCancel(context.Background())
	own := make(chan struct{}, namesAtOnce)
	defer func() {
		cancel()
		for range cap(own) {
			own <- struct{}{} // until all that were begun have ended
		}
	}()
	defer c.Close()
	buf := make([]byte, 65535)
	for {
		k, err := c.Read(buf)
		if err != nil {
			return
		}
		req := slices.Clone(buf[:min(k, maxQuestion+1)])
		select {
		case own <- struct{}{}:
		default:
			continue // asked again if it matters
		}
		select {
		case asking <- struct{}{}:
		default:
			<-own
			continue
		}
		go func() {
			defer func() { <-asking; <-own }()
			ctx, cancel := context.WithTimeout(ctx, namesTimeout)
			defer cancel()
			if answer := answerName(ctx, req, find); answer != nil {
				_, _ = c.Write(answer)
			}
		}()
	}
}

// answerName answers one question, or returns nil for what is none.
func answerName(ctx context.Context, req []byte, find lookup) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(req)
	if err != nil || len(req) > maxQuestion || h.Response || h.OpCode != 0 {
		return nil
	}
	q, err := p.Question()
	if err != nil || q.Class != dnsmessage.ClassINET {
		return nil
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return nil
	}
	network := map[dnsmessage.Type]string{dnsmessage.TypeA: "ip4", dnsmessage.TypeAAAA: "ip6"}[q.Type]
	var addrs []netip.Addr
	code := dnsmessage.RCodeSuccess
	if name := q.Name.String(); network != "" && strings.Contains(strings.TrimSuffix(name, "."), ".") { // single names are of a network
		addrs, err = find(ctx, network, name) // it ends with a dot: no search list
		var none *net.DNSError
		if err != nil && (!errors.As(err, &none) || !none.IsNotFound) {
			code = dnsmessage.RCodeServerFailure
		}
	}
	return namesAnswer(h, q, code, addrs)
}

// namesAnswer is an answer of at most 512 bytes.
func namesAnswer(h dnsmessage.Header, q dnsmessage.Question, code dnsmessage.RCode, addrs []netip.Addr) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, maxQuestion), dnsmessage.Header{ID: h.ID, Response: true,
		RecursionDesired: h.RecursionDesired, RecursionAvailable: true, RCode: code})
	b.EnableCompression()
	err := errors.Join(b.StartQuestions(), b.Question(q), b.StartAnswers())
	rh, told := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: namesTTL}, 0
	for _, a := range addrs {
		a = a.Unmap()
		switch {
		case !within(internet, a) || a == exitNames.Addr() || told == 7 || err != nil:
		case a.Is4() && q.Type == dnsmessage.TypeA:
			err = b.AResource(rh, dnsmessage.AResource{A: a.As4()})
			told++
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			err = b.AAAAResource(rh, dnsmessage.AAAAResource{AAAA: a.As16()})
			told++
		}
	}
	msg, err2 := b.Finish()
	if err != nil || err2 != nil || len(msg) > maxQuestion {
		return nil
	}
	return msg
}

// resolver looks up names that are not the mesh's: at the exit if one is in use and a rule lets this node ask it, or else
// with this machine's own.
func (n *Node) resolver() *net.Resolver {
	if !n.asksExit() {
		return net.DefaultResolver
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if !strings.HasPrefix(network, "udp") {
			return nil, errors.New("an exit answers by UDP")
		}
		return n.dial(ctx, "udp", exitNames.String(), exitNames)
	}}
}

func (n *Node) asksExit() bool {
	return n.enforce.cur.Load().exit != "" && n.allowed(exitNames.String(), exitNames, protoUDP) == nil
}

package bind

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// names remembers where names led: a DNS that is down or slow stops no node that knows where its coordinator and its relays
// were, neither one that moves nor, with what its owner kept, one that starts.
//
//	lookup ──▶ DNS ─┬─ answers ────────────────────────────▶ these, remembered
//	                └─ fails, or is silent for dnsPatience ─▶ the remembered
//
// What is remembered is only where to knock: who answers proves itself by a key, as always.
type names struct {
	ask   func(ctx context.Context, host string) ([]netip.Addr, error)
	tell  func(map[string][]netip.Addr) // what is to be kept; nil for nobody
	mu    sync.Mutex
	known map[string][]netip.Addr
}

const (
	dnsPatience = 700 * time.Millisecond
	maxNames    = 64 // remembered,
	maxLed      = 8  // and addresses of each
)

func (n *names) init(known map[string][]netip.Addr, tell func(map[string][]netip.Addr)) {
	n.known, n.tell = make(map[string][]netip.Addr), tell
	for host, addrs := range known {
		if len(n.known) < maxNames && len(addrs) > 0 {
			n.known[host] = slices.Clone(addrs[:min(len(addrs), maxLed)])
		}
	}
}

// lookup returns a host's addresses. It ends with ctx at the latest.
func (n *names) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	old := n.remembered(host)
	if len(old) > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, dnsPatience)
		defer cancel()
	}
	addrs, err := n.ask(ctx, host)
	if err == nil && len(addrs) == 0 {
		err = &net.DNSError{Err: "no address", Name: host, IsNotFound: true}
	}
	if err != nil {
		if len(old) > 0 {
			return old, nil
		}
		return nil, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	n.remember(host, addrs)
	return addrs, nil
}

func (n *names) remembered(host string) []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.known[host])
}

// remember keeps where a name leads, and lets the owner know if that is news.
func (n *names) remember(host string, addrs []netip.Addr) {
	led := slices.Clone(addrs[:min(len(addrs), maxLed)])
	slices.SortFunc(led, netip.Addr.Compare)
	n.mu.Lock()
	defer n.mu.Unlock()
	if old, ok := n.known[host]; slices.Equal(old, led) || !ok && len(n.known) >= maxNames {
		return
	}
	n.known[host] = led
	if n.tell != nil {
		n.tell(maps.Clone(n.known))
	}
}

const (
	dialStagger = 250 * time.Millisecond // between attempts at one address and the next (RFC 8305 section 5),
	dialAgain   = time.Second            // and at the same: the kernel repeats a lost SYN after 1, 3 and 7 s
	dialMost    = 4                      // attempts under way beyond one for each address
)

// dialAny connects to whichever address answers first, and asks all of them again until ctx ends or all have refused.
func dialAny(ctx context.Context, addrs []string, dial func(ctx context.Context, addr string) (net.Conn, error)) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result)
	next := time.NewTimer(0)
	defer next.Stop()
	var errs []error
	begun, open := 0, 0
	for {
		select {
		case <-next.C:
			if open >= len(addrs)+dialMost {
				continue
			}
			addr := addrs[begun%len(addrs)]
			begun++
			open++
			wg.Go(func() {
				c, err := dial(ctx, addr)
				select {
				case results <- result{c, err}:
				case <-ctx.Done():
					if err == nil {
						c.Close()
					}
				}
			})
			if next.Reset(dialStagger); begun >= len(addrs) {
				next.Reset(dialAgain)
			}
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			open--
			errs = append(errs, r.err)
			if begun < len(addrs) {
				next.Reset(0)
			} else if open == 0 {
				return nil, errors.Join(errs[:min(len(errs), len(addrs))]...)
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

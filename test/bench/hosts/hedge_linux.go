package hosts

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/hedge-mesh/hedge/test/bench/crowd"
	"github.com/hedge-mesh/hedge/test/bench/kid"
)

// hedge runs a coordinator with a relay at a, or at the hub if there is one, and a node at a and at b.
func (w *world) hedge(ctx context.Context, bin string, o Options, tun bool) error {
	device := "--tun=off"
	if tun {
		device = "--tun=on"
	}
	first, dir := w.a, "a"
	if w.hub != "" {
		first, dir = w.hub, "hub"
	}
	if w.name == RelayTLS {
		script := "add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c meta l4proto udp iif != lo drop"
		if out, err := in(ctx, w.hub, "nft", script).CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
	}
	h := hedge{w: w, bin: bin}
	var begun struct {
		Join string `json:"join"`
	}
	init := []string{"init", "--listen", w.hubAddr + ":7443", "--user", "bench@lab", "--name", dir, device}
	if w.hub != "" {
		init = []string{"init", "--listen", ":7443", "--user", "bench@lab", "--name", dir, "--tun=off"}
	}
	if err := h.do(ctx, first, dir, &begun, init...); err != nil {
		return err
	}
	w.ends = append(w.ends, func() {
		_ = h.do(context.WithoutCancel(ctx), w.b, "b", nil, "down")
		if w.hub != "" {
			_ = h.do(context.WithoutCancel(ctx), w.a, "a", nil, "down")
		}
		_ = h.do(context.WithoutCancel(ctx), first, dir, nil, "down", "--all")
	})
	policy := filepath.Join(w.dir, "acl.hujson")
	if err := os.WriteFile(policy, []byte(manyRules(o.Rules, o.Peers)), 0o600); err != nil {
		return err
	}
	if err := h.do(ctx, first, dir, nil, "admin", "acl", "set", policy); err != nil {
		return err
	}
	if err := h.populate(ctx, first, dir, o.Peers-1); err != nil {
		return err
	}
	if w.hub != "" {
		if err := h.do(ctx, w.a, "a", nil, "up", begun.Join, "--name", "a", device); err != nil {
			return err
		}
		if err := h.do(ctx, first, dir, &begun, "admin", "join-key", "create", "--user", "bench@lab"); err != nil {
			return err
		}
	}
	if err := h.do(ctx, w.b, "b", nil, "up", begun.Join, "--name", "b", device); err != nil {
		return err
	}
	return h.ready(ctx, tun, o.Peers)
}

// hedge is a binary, as it is used in one world.
type hedge struct {
	w   *world
	bin string
}

// do runs a verb of hedge in a namespace, and reads the JSON that it prints.
func (h hedge) do(ctx context.Context, ns, state string, out any, args ...string) error {
	b, err := in(ctx, ns, h.bin, append(args, "--state-dir", filepath.Join(h.w.dir, state), "--json")...).Output()
	if err != nil {
		return fmt.Errorf("hedge %s: %w\n%s", args[0], err, cmp.Or(stderr(err), string(b)))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// populate has n more nodes join, which only the two know.
func (h hedge) populate(ctx context.Context, ns, state string, n int) error {
	if n < 1 {
		return nil
	}
	var key struct {
		Join string `json:"join"`
	}
	if err := h.do(ctx, ns, state, &key, "admin", "join-key", "create", "--tag", "tag:peer", "--reusable"); err != nil {
		return err
	}
	k, err := kid.Start[crowd.Request, int](ctx, "crowd", []string{"ip", "netns", "exec", ns})
	if err != nil {
		return err
	}
	defer k.Stop()
	_, err = k.Ask(crowd.Request{Join: key.Join, N: n})
	return err
}

// status is what is needed of `hedge status --json`.
type status struct {
	PID   int    `json:"pid"`
	Proxy string `json:"proxy"`
	Peers []struct {
		Name  string       `json:"name"`
		Addrs []netip.Addr `json:"addrs"`
		Path  struct {
			Kind string `json:"kind"`
		} `json:"path"`
	} `json:"peers"`
}

// ready waits for the path that the world is about, and notes b's address, a's proxy and both nodes' processes.
func (h hedge) ready(ctx context.Context, tun bool, peers int) error {
	w, want := h.w, "direct"
	if w.hub != "" {
		want = "relay"
	}
	return eventually(ctx, func() error {
		if err := h.do(ctx, w.a, "a", nil, "ping", "b", "-c", "1"); err != nil {
			return err
		}
		var a, b status
		if err := errors.Join(h.do(ctx, w.a, "a", &a, "status"), h.do(ctx, w.b, "b", &b, "status")); err != nil {
			return err
		}
		if len(a.Peers) < peers {
			return fmt.Errorf("a knows %d peers, not %d", len(a.Peers), peers)
		}
		for _, p := range a.Peers {
			if p.Name != "b" {
				continue
			}
			if p.Path.Kind != want || len(p.Addrs) == 0 {
				return fmt.Errorf("the path is %s, not %s", cmp.Or(p.Path.Kind, "none"), want)
			}
			w.address, w.tunnel = p.Addrs[0].String(), []int{a.PID, b.PID}
			if !tun {
				w.socks = a.Proxy
			}
			return nil
		}
		return errors.New("a does not know b")
	})
}

// manyRules lets each of the user's nodes reach the others on the ports of the measurements by the last of its rules, and
// by no other. Peers with a tag are known to them, and they to those.
func manyRules(rules, peers int) string {
	var s strings.Builder
	s.WriteString(`{"tagOwners": {"tag:peer": ["bench@lab"]}, "acls": [` + "\n")
	if peers > 1 {
		s.WriteString(`{"action": "accept", "src": ["tag:peer"], "dst": ["bench@lab:9"]},` + "\n")
		rules--
	}
	for i := range rules - 1 {
		fmt.Fprintf(&s, `{"action": "accept", "src": ["bench@lab"], "dst": ["bench@lab:%d"]},`+"\n", 10000+i%50000)
	}
	fmt.Fprintf(&s, `{"action": "accept", "src": ["bench@lab"], "dst": ["bench@lab:%d-%d"]}]}`, iperfPort, echoPort)
	return s.String()
}

package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/kid"
)

// world is a tunnel between two hosts.
type world struct {
	*pair
	name    string
	dir     string
	address string   // of b, for a
	socks   string   // the proxy of a to go through; empty for none
	tunnel  []int    // the tunnel's own processes
	ends    []func() // in the order made
	client  *kid.Kid[asking, latency]
}

// open makes the hosts of a world, brings its tunnel up, and starts what answers at b.
func (s *site) open(ctx context.Context, o Options, name string) (*world, error) {
	if name == HedgeNarrow {
		o.Wire = tunnelMTU + overhead
	}
	p, err := s.newPair(o.Wire, name == RelayTLS || name == RelayUDP)
	if err != nil {
		return nil, err
	}
	w := &world{pair: p, name: name, dir: filepath.Join(s.dir, name)}
	s.worlds = append(s.worlds, w)
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		return nil, err
	}
	switch name {
	case HedgeTUN, HedgeNarrow, RelayTLS, RelayUDP:
		err = w.hedge(ctx, o.Hedge, o, true)
	case HedgeUser:
		err = w.hedge(ctx, o.Hedge, o, false)
	case AgainstTUN:
		err = w.hedge(ctx, o.Against, o, true)
	case AgainstUser:
		err = w.hedge(ctx, o.Against, o, false)
	case WireGuard, WireGuardWide:
		mtu := tunnelMTU
		if name == WireGuardWide {
			mtu = o.Wire - overhead
		}
		err = w.wireGuard(ctx, filepath.Join(s.dir, "wireguard-bin"), s.prefix, len(s.worlds), mtu)
	case Veth:
		w.address = p.addrB
	default:
		i := slices.IndexFunc(o.Others, func(b Baseline) bool { return b.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no such world")
		}
		err = w.baseline(ctx, o.Others[i], o.Wire)
	}
	if err != nil {
		return nil, err
	}
	if w.tunnel == nil {
		w.tunnel = append(pids(w.a), pids(w.b)...)
	}
	return w, w.serve(ctx)
}

func (w *world) close() {
	for i := len(w.ends) - 1; i >= 0; i-- {
		w.ends[i]()
	}
	for _, ns := range []string{w.a, w.b, w.hub} {
		if ns != "" {
			remove(ns)
		}
	}
}

// in is a program in a namespace. Ctrl-C is not for it: it is ended in order.
func in(ctx context.Context, ns, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns, name}, args...)...)
	c.Env = append(os.Environ(), "WG_PROCESS_FOREGROUND=1", "HEDGE_PORT_MAPPING=off")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return c
}

// run starts a program that lasts as long as the world.
func (w *world) run(ns, log, name string, args ...string) error {
	f, err := os.Create(filepath.Join(w.dir, log))
	if err != nil {
		return err
	}
	defer f.Close()
	c := in(context.Background(), ns, name, args...)
	c.Stdout, c.Stderr = f, f
	if err := c.Start(); err != nil {
		return err
	}
	w.ends = append(w.ends, func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return nil
}

// serve starts what answers at b and what asks at a, and waits until a stream gets through.
func (w *world) serve(ctx context.Context) error {
	at := "0.0.0.0"
	if w.socks != "" { // what comes through the mesh comes from loopback
		at = "127.0.0.1"
	}
	if err := w.run(w.b, "iperf3.log", "iperf3", "-s", "-p", strconv.Itoa(iperfPort)); err != nil {
		return err
	}
	echo, err := kid.Start[json.RawMessage, string](ctx, "echo", []string{"ip", "netns", "exec", w.b}, net.JoinHostPort(at, strconv.Itoa(echoPort)))
	if err != nil {
		return err
	}
	w.ends = append(w.ends, echo.Stop)
	if w.client, err = kid.Start[asking, latency](ctx, "request", []string{"ip", "netns", "exec", w.a}); err != nil {
		return err
	}
	w.ends = append(w.ends, w.client.Stop)
	return eventually(ctx, func() error {
		_, err := w.iperf(ctx, 1, "-P", "1")
		return err
	})
}

// reachable waits until b answers a's ping.
func (w *world) reachable(ctx context.Context) error {
	return eventually(ctx, func() error {
		if err := in(ctx, w.a, "ping", "-c", "1", "-W", "1", w.address).Run(); err != nil {
			return fmt.Errorf("%s does not answer pings: %w", w.address, err)
		}
		return nil
	})
}

func eventually(ctx context.Context, f func() error) (err error) {
	for end := time.Now().Add(upTime); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// baseline brings up what a file says.
func (w *world) baseline(ctx context.Context, b Baseline, wire int) error {
	shell := func(ctx context.Context, script string) *exec.Cmd {
		c := exec.CommandContext(ctx, "bash", "-c", script)
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		c.Env = append(os.Environ(), "NS_A="+w.a, "NS_B="+w.b, "ADDR_A="+w.addrA, "ADDR_B="+w.addrB, "WIRE="+strconv.Itoa(wire), "DIR="+w.dir)
		return c
	}
	if b.Down != "" {
		w.ends = append(w.ends, func() { // even if up fails, or ctx has ended
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), upTime)
			defer cancel()
			_ = shell(ctx, b.Down).Run()
		})
	}
	log, err := os.Create(filepath.Join(w.dir, "up.log")) // a file, not a pipe: what up leaves running may keep it
	if err != nil {
		return err
	}
	defer log.Close()
	up := shell(ctx, b.Up)
	up.Stdout, up.Stderr = log, log
	if err := up.Run(); err != nil {
		said, _ := os.ReadFile(log.Name())
		return fmt.Errorf("up: %w\n%s", err, said)
	}
	w.address = b.Address
	if command, ok := strings.CutPrefix(b.Address, "$"); ok {
		out, err := shell(ctx, command).Output()
		if err != nil {
			return fmt.Errorf("address: %w", err)
		}
		w.address = strings.TrimSpace(string(out))
	}
	return w.reachable(ctx)
}

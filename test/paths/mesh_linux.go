package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hedge-mesh/hedge/node"
	"github.com/hedge-mesh/hedge/test/lab"
)

// mesh is a world with Hedge in it.
type mesh struct {
	bin   string // the hedge binary
	dir   string // a folder for each process
	world *lab.World
	hub   *lab.Server // coordinator and relay
	extra *lab.Server // another relay
	hubUp *process
	relay *process
	line  string // of the other relay
	a, b  *peer
	spot  *lab.Server // where the third node is, if there is one
	third *process
}

// peer is a node at a site.
type peer struct {
	*lab.Site
	m    *mesh
	name string
	join string
	proc *process
	api  *node.LocalClient

	mu    sync.Mutex
	other string // the key of the other peer, whose beginning is logged
	paths []change
}

// change is a new path to the other peer, as logged.
type change struct {
	at   time.Time
	path string // "direct 192.0.2.1:41641", "relay 1", "via peer relay third", "none"
	why  string
}

// is reports whether the path is "direct", by "relay", or whatever else it may begin with.
func (c change) is(kind string) bool { return strings.HasPrefix(c.path, kind) }

// process is a running hedge.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // it has ended, and its log is read
}

const policy = `{"tagOwners": {"tag:a": [], "tag:b": [], "tag:third": []}, "acls": [
	{"action": "accept", "src": ["tag:a", "tag:b"], "dst": ["tag:a:*", "tag:b:*", "tag:third:9"]}],
	"grants": [{"src": ["tag:a", "tag:b"], "dst": ["tag:third"], "app": {"tailscale.com/cap/relay": []}}]}`

// newMesh builds it all up to two nodes that know of each other and have never talked; round trips of plain datagrams
// meanwhile go to took.
func newMesh(ctx context.Context, bin, dir, kindA, kindB string, took *[]time.Duration) (m *mesh, err error) {
	m = &mesh{bin: bin, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
			m = nil
		}
	}()
	if m.world, err = lab.NewWorld(); err != nil {
		return m, err
	}
	if err := m.servers(ctx); err != nil {
		return m, err
	}
	for i, kind := range []string{kindA, kindB} {
		site, err := m.world.Site(kind, kindA != kindB)
		if err != nil {
			return m, err
		}
		p := &peer{Site: site, m: m, name: string(rune('a' + i))}
		p.api = node.NewLocalClient(filepath.Join(m.state(p.name), "run", "node.sock"))
		if i == 0 {
			m.a = p
		} else {
			m.b = p
		}
		if p.join, err = m.joinKey(ctx, p.name); err != nil {
			return m, err
		}
		if err := p.start(); err != nil {
			return m, err
		}
	}
	if err := m.settle(ctx); err != nil {
		return m, err
	}
	*took, err = plain(ctx, m) // meanwhile STUN has its say, and what it found is told to the other by the coordinator
	return m, errors.Join(err, pause(ctx, 400*time.Millisecond))
}

func (m *mesh) state(name string) string { return filepath.Join(m.dir, name) }

func urls(s *lab.Server) []string {
	return []string{"--url", "https://" + s.Addr.String() + ":443", "--url", "https://[" + s.Addr6.String() + "]:443"}
}

// servers starts the other relay and the coordinator.
func (m *mesh) servers(ctx context.Context) (err error) {
	if m.hub, err = m.world.Server(0); err != nil {
		return err
	}
	if m.extra, err = m.world.Server(1); err != nil {
		return err
	}
	hub := m.state("hub")
	if err := errors.Join(os.MkdirAll(hub, 0o700), os.WriteFile(filepath.Join(hub, "acl.hujson"), []byte(policy), 0o600)); err != nil {
		return err
	}
	if err := m.startRelay(ctx); err != nil {
		return err
	}
	return m.startHub(ctx)
}

// startRelay starts the other relay, and takes note of its line for the coordinator.
func (m *mesh) startRelay(ctx context.Context) error {
	key, err := m.hedge(ctx, m.hub.Space, "hub", "coordinator", "--print-key")
	if err != nil {
		return err
	}
	found := make(chan string, 1)
	if m.relay, err = m.run(m.extra.Space, "relay", nil, func(line string) {
		if i := strings.Index(line, "https://"); i >= 0 && strings.Contains(line, "#relay:") {
			select {
			case found <- strings.TrimSpace(line[i:]):
			default:
			}
		}
	}, append([]string{"relay", "--listen", ":443", "--coordinator-key", strings.TrimSpace(key)}, urls(m.extra)...)...); err != nil {
		return err
	}
	select {
	case m.line = <-found:
	case <-ctx.Done():
		return fmt.Errorf("the relay does not start: %w", ctx.Err())
	}
	return nil
}

func (m *mesh) startHub(ctx context.Context) (err error) {
	args := append([]string{"coordinator", "--listen", ":443", "--relay", m.line}, urls(m.hub)...)
	if m.hubUp, err = m.run(m.hub.Space, "hub", nil, nil, args...); err != nil {
		return err
	}
	return until(ctx, "the coordinator answers", func() error {
		_, err := m.hedge(ctx, m.hub.Space, "hub", "admin", "status", "--json")
		return err
	})
}

func (m *mesh) joinKey(ctx context.Context, name string) (string, error) {
	out, err := m.hedge(ctx, m.hub.Space, "hub", "admin", "join-key", "create", "--tag", "tag:"+name, "--json")
	if err != nil {
		return "", err
	}
	var key struct {
		Join string `json:"join"`
	}
	return key.Join, json.Unmarshal([]byte(out), &key)
}

func (m *mesh) env(name string) []string {
	return append(os.Environ(), "HEDGE_STATE_DIR="+m.state(name), "HEDGE_LOG_LEVEL=debug")
}

// hedge runs a verb to its end.
func (m *mesh) hedge(ctx context.Context, s lab.Space, name string, args ...string) (string, error) {
	cmd := s.Command(ctx, m.bin, args...)
	cmd.Env = m.env(name)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("hedge %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
		}
	}
	return string(out), err
}

// run starts a verb that stays; each line that it prints is logged and given to f.
func (m *mesh) run(s lab.Space, name string, env []string, f func(line string), args ...string) (*process, error) {
	if err := os.MkdirAll(m.state(name), 0o700); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(m.state(name), args[0]+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: s.Command(context.Background(), m.bin, args...), done: make(chan struct{})}
	p.cmd.Env = append(m.env(name), env...)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		return nil, errors.Join(err, r.Close(), log.Close())
	}
	go func() {
		defer close(p.done)
		defer log.Close()
		defer r.Close()
		lines := bufio.NewScanner(io.TeeReader(r, log))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if f != nil {
				f(lines.Text())
			}
		}
		p.cmd.Wait()
	}()
	return p, nil
}

// stop ends it, politely or not.
func (p *process) stop(sig os.Signal) {
	if p == nil {
		return
	}
	p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// start brings the node up, in the foreground.
func (p *peer) start() (err error) {
	p.mu.Lock()
	if len(p.paths) > 0 { // it begins anew, and so on the relay
		p.paths = append(p.paths, change{time.Now(), "relay", "it has just begun"})
	}
	p.mu.Unlock()
	p.proc, err = p.m.run(p.Space, p.name, []string{"HEDGE_JOIN=" + p.join}, p.logged, "up", "--foreground", "--name", p.name)
	p.join = ""
	return err
}

// logged takes note of a new path.
func (p *peer) logged(line string) {
	if !strings.Contains(line, `"path changed"`) {
		return
	}
	now := time.Now()
	var l struct {
		Peer string `json:"peer"`
		Path string `json:"path"`
		Why  string `json:"why"`
	}
	if json.Unmarshal([]byte(line), &l) != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.Peer != "" && strings.HasPrefix(p.other, l.Peer) {
		p.paths = append(p.paths, change{now, l.Path, l.Why})
	}
}

// since are the paths from a moment on: the one then, and those that came after.
func (p *peer) since(at time.Time) (paths []change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.paths {
		if c.at.Before(at) {
			paths = paths[:0]
		}
		paths = append(paths, c)
	}
	return paths
}

// settled waits until a node runs, knows its NAT and its relay, and sees the other.
func (m *mesh) settle(ctx context.Context) error {
	for _, p := range []*peer{m.a, m.b} {
		if err := until(ctx, "node "+p.name+" is ready", func() error {
			s, err := p.api.Status(ctx)
			if err != nil {
				return err
			}
			if s.State != node.StateRunning || s.Relay.ID == 0 || !p.knows(s) {
				return fmt.Errorf("it is %s, home relay %d, %d peers: %s", s.State, s.Relay.ID, len(s.Peers), s.Problem)
			}
			n, err := p.api.Netcheck(ctx)
			if err != nil {
				return err
			}
			for _, r := range n.Relays {
				if r.Home && r.Connected {
					return nil
				}
			}
			return errors.New("its home relay is not connected")
		}); err != nil {
			return err
		}
	}
	return nil
}

func (m *mesh) other(p *peer) *peer {
	if p == m.a {
		return m.b
	}
	return m.a
}

// knows reports whether the peer sees the other, and takes note of its key.
func (p *peer) knows(s node.Status) bool {
	name := p.m.other(p).name
	i := slices.IndexFunc(s.Peers, func(q node.Peer) bool { return q.Name == name && q.Online })
	if i >= 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		_, p.other, _ = strings.Cut(s.Peers[i].Key, ":")
	}
	return i >= 0
}

// addrOf is the other's address in the mesh, as a node sees it.
func (m *mesh) addrOf(ctx context.Context, from *peer) (netip.Addr, error) {
	s, err := from.api.Status(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, p := range s.Peers {
		if p.Name == m.other(from).name && len(p.Addrs) > 0 {
			return p.Addrs[0], nil
		}
	}
	return netip.Addr{}, errors.New("no peer")
}

// close ends all of it.
func (m *mesh) close() error {
	var wg sync.WaitGroup
	for _, p := range []*peer{m.a, m.b} {
		if p != nil && p.proc != nil {
			wg.Go(func() { p.proc.stop(os.Interrupt) })
		}
	}
	wg.Wait()
	for _, p := range []*process{m.third, m.hubUp, m.relay} {
		if p != nil {
			p.cmd.Process.Kill()
			<-p.done
		}
	}
	if m.world == nil {
		return nil
	}
	return m.world.Close()
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// until tries f until it succeeds.
func until(ctx context.Context, what string, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		if e := pause(ctx, 25*time.Millisecond); e != nil {
			return fmt.Errorf("not so that %s: %w: %w", what, e, err)
		}
	}
}

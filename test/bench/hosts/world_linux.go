package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hedge-mesh/hedge/node/key"
)

const (
	addrA, addrB = "10.78.0.1", "10.78.0.2"
	iperfPort    = 5201
	echoPort     = 5202
	tunnelMTU    = 1280
	upTime       = 30 * time.Second
)

// pair is two hosts on one wire.
type pair struct{ a, b string }

func newPair(i, mtu int) (pair, error) {
	p := pair{fmt.Sprintf("hbench%d-%da", os.Getpid(), i), fmt.Sprintf("hbench%d-%db", os.Getpid(), i)}
	script := [][]string{
		{"netns", "add", p.a}, {"netns", "add", p.b},
		{"link", "add", "eth0", "netns", p.a, "type", "veth", "peer", "name", "eth0", "netns", p.b},
	}
	for _, h := range [][2]string{{p.a, addrA}, {p.b, addrB}} {
		script = append(script,
			[]string{"-n", h[0], "addr", "add", h[1] + "/24", "dev", "eth0"},
			[]string{"-n", h[0], "link", "set", "lo", "up"},
			[]string{"-n", h[0], "link", "set", "eth0", "mtu", strconv.Itoa(mtu), "up"})
	}
	for _, args := range script {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			p.close()
			return p, fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return p, nil
}

func (p pair) close() {
	for _, ns := range []string{p.a, p.b} {
		for _, pid := range pids(ns) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = exec.Command("ip", "netns", "del", ns).Run()
	}
}

func pids(ns string) (out []int) {
	b, _ := exec.Command("ip", "netns", "pids", ns).Output()
	for _, s := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(s); err == nil {
			out = append(out, n)
		}
	}
	return out
}

func in(ns, name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", ns, name}, args...)...)
}

// world is a tunnel between two hosts.
type world struct {
	pair
	name    string
	dir     string
	start   func(*world) error // returns when a reaches b
	address string             // of b, for a
	socks   string             // the proxy of a to go through; empty for none
	tunnel  []int              // the tunnel's own processes
	ends    []func()           // in the order made
}

func (w *world) close() {
	for i := len(w.ends) - 1; i >= 0; i-- {
		w.ends[i]()
	}
	w.pair.close()
}

func (w *world) shell(script string) *exec.Cmd {
	c := exec.Command("bash", "-c", script)
	c.Env = append(os.Environ(), "NS_A="+w.a, "NS_B="+w.b, "ADDR_A="+addrA, "ADDR_B="+addrB, "DIR="+w.dir)
	return c
}

// run starts a program that lasts as long as the world.
func (w *world) run(ns, log, name string, args ...string) (*exec.Cmd, error) {
	f, err := os.Create(filepath.Join(w.dir, log))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c := in(ns, name, args...)
	c.Stdout, c.Stderr = f, f
	c.Env = append(os.Environ(), "WG_PROCESS_FOREGROUND=1", "HEDGE_PORT_MAPPING=off")
	if err := c.Start(); err != nil {
		return nil, err
	}
	w.ends = append(w.ends, func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c, nil
}

// serve starts what answers at b, after noting which processes are the tunnel's.
func (w *world) serve() error {
	w.tunnel = append(pids(w.a), pids(w.b)...)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	at := "0.0.0.0"
	if w.socks != "" {
		at = "127.0.0.1"
	}
	if _, err := w.run(w.b, "iperf3.log", "iperf3", "-s", "-p", strconv.Itoa(iperfPort)); err != nil {
		return err
	}
	_, err = w.run(w.b, "echo.log", self, "-request", "listen:"+net.JoinHostPort(at, strconv.Itoa(echoPort)))
	if err != nil {
		return err
	}
	return eventually(func() error {
		_, err := w.iperf(time.Second, "-P", "1")
		return err
	})
}

// reachable waits until b answers a's ping.
func (w *world) reachable() error {
	return eventually(func() error { return in(w.a, "ping", "-c", "1", "-W", "1", w.address).Run() })
}

func eventually(f func() error) (err error) {
	for end := time.Now().Add(upTime); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return nil
		}
	}
	return err
}

// startWireGuard runs wireguard-go's own program at both ends, and configures it over its socket.
func startWireGuard(bin string) func(*world) error {
	return func(w *world) error {
		var keys [2]key.NodePrivate
		for i := range keys {
			keys[i] = key.NewNode()
		}
		for i, ns := range []string{w.a, w.b} {
			dev := fmt.Sprintf("hb%d%c", os.Getpid()%100000, 'a'+i) // the sockets of all namespaces are in one folder
			sock := "/var/run/wireguard/" + dev + ".sock"
			if _, err := w.run(ns, dev+".log", bin, "-f", dev); err != nil {
				return err
			}
			w.ends = append(w.ends, func() { _ = os.Remove(sock) })
			conf := fmt.Sprintf("set=1\nprivate_key=%s\nlisten_port=51820\npublic_key=%s\nendpoint=%s:51820\nallowed_ip=10.79.0.%d/32\n\n",
				key.WireGuardHex(keys[i]), publicHex(keys[1-i]), []string{addrB, addrA}[i], 2-i)
			if err := eventually(func() error { return uapi(sock, conf) }); err != nil {
				return err
			}
			for _, args := range [][]string{{"addr", "add", fmt.Sprintf("10.79.0.%d/24", i+1), "dev", dev}, {"link", "set", dev, "mtu", strconv.Itoa(tunnelMTU), "up"}} {
				if out, err := exec.Command("ip", append([]string{"-n", ns}, args...)...).CombinedOutput(); err != nil {
					return fmt.Errorf("ip: %w: %s", err, out)
				}
			}
		}
		w.address = "10.79.0.2"
		return w.reachable()
	}
}

func uapi(sock, conf string) error {
	c, err := net.Dial("unix", sock)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(conf)); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && line != "errno=0\n" {
		err = errors.New(strings.TrimSpace(line))
	}
	return err
}

// startHedge runs a coordinator and a node at a, and a node at b, under a policy of many rules.
func startHedge(bin string, rules int, tun bool) func(*world) error {
	return func(w *world) error {
		hedge := func(ns, state string, out any, args ...string) error {
			c := in(ns, bin, append(args, "--state-dir", filepath.Join(w.dir, state), "--json")...)
			c.Env = append(os.Environ(), "HEDGE_PORT_MAPPING=off")
			b, err := c.Output()
			if err != nil {
				var x *exec.ExitError
				errors.As(err, &x)
				return fmt.Errorf("hedge %s: %w\n%s", args[0], err, x.Stderr)
			}
			if out == nil {
				return nil
			}
			return json.Unmarshal(b, out)
		}
		device := "off"
		if tun {
			device = "on"
		}
		var first struct {
			Join string `json:"join"`
		}
		if err := hedge(w.a, "a", &first, "init", "--listen", addrA+":7443", "--user", "bench@lab", "--name", "a", "--tun="+device); err != nil {
			return err
		}
		w.ends = append(w.ends, func() {
			_ = hedge(w.b, "b", nil, "down")
			_ = hedge(w.a, "a", nil, "down", "--all")
		})
		policy := filepath.Join(w.dir, "acl.hujson")
		if err := os.WriteFile(policy, []byte(manyRules(rules)), 0o600); err != nil {
			return err
		}
		if err := hedge(w.a, "a", nil, "admin", "acl", "set", policy); err != nil {
			return err
		}
		if err := hedge(w.b, "b", nil, "up", first.Join, "--name", "b", "--tun="+device); err != nil {
			return err
		}
		var s status
		if err := eventually(func() error {
			if err := hedge(w.a, "a", nil, "ping", "b", "-c", "1"); err != nil {
				return err
			}
			if err := hedge(w.a, "a", &s, "status"); err != nil {
				return err
			}
			if len(s.Peers) != 1 || s.Peers[0].Path.Kind != "direct" || len(s.Peers[0].Addrs) == 0 {
				return errors.New("no direct path")
			}
			return nil
		}); err != nil {
			return err
		}
		w.address = s.Peers[0].Addrs[0].String()
		if !tun {
			w.socks = s.Proxy
		}
		return nil
	}
}

// status is what is needed of `hedge status --json`.
type status struct {
	Proxy string `json:"proxy"`
	Peers []struct {
		Addrs []netip.Addr `json:"addrs"`
		Path  struct {
			Kind string `json:"kind"`
		} `json:"path"`
	} `json:"peers"`
}

// manyRules lets a reach b on the ports of the measurements by the last of its rules, and by no other.
func manyRules(n int) string {
	var s strings.Builder
	s.WriteString(`{"acls": [` + "\n")
	for i := range max(n, 1) - 1 {
		fmt.Fprintf(&s, `{"action": "accept", "src": ["bench@lab"], "dst": ["bench@lab:%d"]},`+"\n", 10000+i%50000)
	}
	fmt.Fprintf(&s, `{"action": "accept", "src": ["bench@lab"], "dst": ["bench@lab:%d-%d"]}]}`, iperfPort, echoPort)
	return s.String()
}

// memory is what the tunnel's processes take now, in megabytes.
func (w *world) memory() (mb float64) {
	for _, pid := range w.tunnel {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				kb, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
				mb += kb / 1e3
			}
		}
	}
	return mb
}

// cpu is what the tunnel's processes have used, in seconds (proc(5): utime and stime, in hundredths).
func (w *world) cpu() (s float64) {
	for _, pid := range w.tunnel {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, ok := strings.Cut(string(b), ") ") // the name before may hold anything
		if f := strings.Fields(rest); ok && len(f) > 12 {
			u, _ := strconv.ParseFloat(f[11], 64)
			k, _ := strconv.ParseFloat(f[12], 64)
			s += (u + k) / 100
		}
	}
	return s
}

func withTimeout(c *exec.Cmd, d time.Duration) (out []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if c.Process != nil {
			_ = c.Process.Kill()
		}
	})
	defer stop()
	return c.Output()
}

func publicHex(p key.NodePrivate) string {
	b := key.ExchangePublic(p).Raw()
	return hex.EncodeToString(b[:])
}

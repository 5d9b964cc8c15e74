package hosts

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/hedge-mesh/hedge/test/bench/kid"
)

// site is the worlds of one run, and the janitor who removes what is left of them.
type site struct {
	prefix  string // of its namespaces' names and of its interfaces'
	dir     string
	janitor *kid.Kid[struct{}, struct{}]
	worlds  []*world
}

var sites atomic.Int64 // of this process, so far

func newSite(ctx context.Context) (s *site, err error) {
	s = &site{prefix: fmt.Sprintf("hb%d%c", os.Getpid(), 'a'+rune(sites.Add(1)-1)%26)}
	if s.dir, err = os.MkdirTemp("", "hedge-hosts"); err != nil {
		return nil, err
	}
	// Not ended by ctx: what follows an interrupt is in order, too, and the end of this process ends it in any case.
	if s.janitor, err = kid.Start[struct{}, struct{}](context.WithoutCancel(ctx), "janitor", nil, s.prefix, s.dir); err != nil {
		_ = os.RemoveAll(s.dir)
	}
	return s, err
}

func (s *site) close() {
	for i := len(s.worlds) - 1; i >= 0; i-- {
		s.worlds[i].close()
	}
	s.janitor.Stop()
}

// janitor waits for its parent's end and then removes the namespaces of the prefix in its first argument, all that runs in
// them, the sockets of interfaces so called, and the folder in its second.
func janitor(args []string) error {
	err := kid.Serve(struct{}{}, func(struct{}) (struct{}, error) { return struct{}{}, nil })
	prefix, dir := args[0], args[1]
	names, _ := filepath.Glob("/var/run/netns/" + prefix + "-*")
	for _, path := range names {
		remove(filepath.Base(path))
	}
	sockets, _ := filepath.Glob("/var/run/wireguard/" + prefix + "*.sock")
	for _, path := range sockets {
		_ = os.Remove(path)
	}
	_ = os.RemoveAll(dir)
	return err
}

// remove ends what runs in a namespace, and the namespace.
func remove(ns string) {
	for range 3 { // what was starting a process
		list := pids(ns)
		for _, pid := range list {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(list) == 0 {
			break
		}
	}
	_ = exec.Command("ip", "netns", "del", ns).Run()
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

// pair is two hosts, and maybe a third between them. Addresses are those of a and b on their wires.
type pair struct {
	a, b, hub    string // namespaces; hub may be empty
	addrA, addrB string
	hubAddr      string // at which a reaches the hub, or a itself if there is none
}

func (s *site) newPair(wire int, hub bool) (*pair, error) {
	n := fmt.Sprintf("%s-%d", s.prefix, len(s.worlds))
	p := &pair{a: n + "a", b: n + "b", addrA: "10.78.1.1", addrB: "10.78.1.2", hubAddr: "10.78.1.1"}
	script := fmt.Sprintf("netns add %s\nnetns add %s\n", p.a, p.b)
	if !hub {
		script += join(wire, p.a, "eth0", p.addrA, p.b, "eth0", p.addrB)
	} else {
		p.hub, p.addrB, p.hubAddr = n+"h", "10.78.2.2", "10.78.1.9"
		script += fmt.Sprintf("netns add %s\n", p.hub) + join(wire, p.a, "eth0", p.addrA, p.hub, "eth0", p.hubAddr) +
			join(wire, p.b, "eth0", p.addrB, p.hub, "eth1", "10.78.2.9")
	}
	for line := range strings.Lines(script) {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip %s: %w: %s", strings.TrimSpace(line), err, out)
		}
	}
	return p, nil
}

// CongestionControl is what TCP of the hosts goes by; empty if nobody says. A namespace has it from the machine's first one,
// of which this process's may differ: only one that is new can tell. Without the right to one it is this process's.
func CongestionControl() string {
	const file = "/proc/sys/net/ipv4/tcp_congestion_control"
	out, err := exec.Command("unshare", "--net", "cat", file).Output()
	if err != nil {
		out, _ = os.ReadFile(file)
	}
	return strings.TrimSpace(string(out))
}

// join is the arguments of ip, a line each, for a wire between two namespaces.
func join(mtu int, ns1, dev1, addr1, ns2, dev2, addr2 string) string {
	s := fmt.Sprintf("link add %s netns %s type veth peer name %s netns %s\n", dev1, ns1, dev2, ns2)
	for _, h := range [][3]string{{ns1, dev1, addr1}, {ns2, dev2, addr2}} {
		s += fmt.Sprintf("-n %s addr add %s/24 dev %s\n-n %s link set lo up\n-n %s link set %s mtu %d up\n", h[0], h[2], h[1], h[0], h[0], h[1], mtu)
	}
	return s
}

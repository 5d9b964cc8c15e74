package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// Subnet is the one network all hosts are on.
var Subnet = netip.MustParsePrefix("10.77.0.0/24")

// Lab is a set of hosts on one switch.
type Lab struct {
	t     testing.TB
	id    string
	hosts int
}

// Host is one network namespace.
type Host struct {
	Space
	Name string
	Addr netip.Addr
	lab  *Lab
	lans int // that it has joined, or that have joined it
}

// New makes an empty network, and removes it with all its hosts when the test ends.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs the ip command (iproute2)")
	}
	l := &Lab{t: t, id: fmt.Sprintf("hedge%d", os.Getpid())}
	if out, err := exec.Command("ip", "netns", "add", l.ns("switch")).CombinedOutput(); err != nil {
		t.Skipf("cannot make a network namespace here: %s", out)
	}
	t.Cleanup(func() { l.remove("switch") })
	l.ip("-n", l.ns("switch"), "link", "add", "br0", "type", "bridge")
	l.ip("-n", l.ns("switch"), "link", "set", "br0", "up")
	return l
}

// Host adds a host, with the next address of Subnet.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	l.hosts++
	b := Subnet.Addr().As4()
	b[3] = byte(l.hosts)
	h := &Host{Space: Space{l.ns(name)}, Name: name, Addr: netip.AddrFrom4(b), lab: l}
	port := fmt.Sprintf("port%d", l.hosts)
	l.ip("netns", "add", h.ns)
	l.t.Cleanup(func() { l.remove(name) })
	l.ip("link", "add", "eth0", "netns", h.ns, "type", "veth", "peer", "name", port, "netns", l.ns("switch"))
	l.ip("-n", l.ns("switch"), "link", "set", port, "master", "br0", "up")
	l.ip("-n", h.ns, "addr", "add", netip.PrefixFrom(h.Addr, Subnet.Bits()).String(), "dev", "eth0")
	l.ip("-n", h.ns, "link", "set", "eth0", "up")
	l.ip("-n", h.ns, "link", "set", "lo", "up")
	return h
}

// At is a host that is there already, in a [World] say.
func (l *Lab) At(name string, s Space, addr netip.Addr) *Host {
	return &Host{Space: s, Name: name, Addr: addr, lab: l}
}

func (l *Lab) ns(name string) string { return l.id + "-" + name }

func (l *Lab) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// remove ends what still runs in the namespace, and then the namespace.
func (l *Lab) remove(name string) {
	pids, _ := exec.Command("ip", "netns", "pids", l.ns(name)).Output()
	for _, pid := range strings.Fields(string(pids)) {
		if pid != strconv.Itoa(os.Getpid()) {
			exec.Command("kill", "-9", pid).Run()
		}
	}
	if out, err := exec.Command("ip", "netns", "del", l.ns(name)).CombinedOutput(); err != nil {
		l.t.Errorf("ip netns del %s: %s", l.ns(name), out)
	}
}

// Firewall loads nftables statements in this host, in place of those loaded before; none removes them all.
// Each statement stands in a chain that sees all the host sends and receives: "ip saddr 10.77.0.2 udp drop".
func (h *Host) Firewall(statements ...string) {
	h.lab.t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		h.lab.t.Skip("needs the nft command (nftables)")
	}
	rules := strings.Join(statements, "\n")
	script := "flush ruleset\n"
	if rules != "" {
		script += fmt.Sprintf("table inet lab {\n chain in { type filter hook input priority 0;\n%s\n}\n"+
			" chain out { type filter hook output priority 0;\n%s\n}\n}\n", rules, rules)
	}
	if err := h.NFT(script); err != nil {
		h.lab.t.Fatal(err)
	}
}

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// LAN adds a host on a network of its own, on which others may be too (Host.Join): one that knows nothing of the switch.
//
//	lan ─ bridge ═ veth ═ router ─ eth0 ═ switch
func (l *Lab) LAN(name string, at ...netip.Prefix) *Host {
	l.t.Helper()
	h := &Host{Space: Space{l.ns(name)}, Name: name, Addr: at[0].Addr(), lab: l}
	l.ip("netns", "add", h.ns)
	l.t.Cleanup(func() { l.remove(name) })
	l.ip("-n", h.ns, "link", "add", "lan", "type", "bridge")
	l.ip("-n", h.ns, "link", "set", "lo", "up")
	l.address(h, "lan", at)
	return h
}

// Join connects a host to a LAN too, under these addresses.
func (h *Host) Join(lan *Host, at ...netip.Prefix) {
	h.lab.t.Helper()
	h.lans++
	lan.lans++
	dev, port := fmt.Sprintf("lan%d", h.lans), fmt.Sprintf("port%d", lan.lans)
	h.lab.ip("link", "add", dev, "netns", h.ns, "type", "veth", "peer", "name", port, "netns", lan.ns)
	h.lab.ip("-n", lan.ns, "link", "set", port, "master", "lan", "up")
	h.lab.address(h, dev, at)
}

func (l *Lab) address(h *Host, dev string, at []netip.Prefix) {
	l.t.Helper()
	for _, p := range at {
		args := []string{"-n", h.ns, "addr", "add", p.String(), "dev", dev}
		if p.Addr().Is6() {
			args = append(args, "nodad")
		}
		l.ip(args...)
	}
	l.ip("-n", h.ns, "link", "set", dev, "up")
}

// Etc gives this host a file of its own in /etc, for what is started in it from now on (ip-netns(8)).
func (h *Host) Etc(name, text string) {
	h.lab.t.Helper()
	dir := filepath.Join("/etc/netns", h.ns)
	err := os.MkdirAll(dir, 0o755)
	h.lab.t.Cleanup(func() { os.RemoveAll(dir) })
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
	}
	if err != nil {
		h.lab.t.Fatal(err)
	}
}

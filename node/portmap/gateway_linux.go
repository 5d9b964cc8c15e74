package portmap

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

var errNoGateway = errors.New("there is no default route over a gateway")

// systemGateway is the gateway of the IPv4 default route, by the kernel's table (proc(5), /proc/net/route).
func systemGateway() (Gateway, error) {
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return Gateway{}, err
	}
	defer f.Close()
	router, ifname, ok := defaultRoute(f)
	if !ok {
		return Gateway{}, errNoGateway
	}
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return Gateway{}, err
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return Gateway{}, err
	}
	var self netip.Addr
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		if ip = ip.Unmap(); !ok || !ip.Is4() {
			continue
		}
		if n.Contains(router.AsSlice()) {
			return Gateway{router, ip}, nil
		}
		if !self.IsValid() {
			self = ip
		}
	}
	if !self.IsValid() {
		return Gateway{}, errNoGateway
	}
	return Gateway{router, self}, nil
}

// defaultRoute finds the default route with the least metric:
//
//	Iface  Destination  Gateway   Flags  RefCnt  Use  Metric  Mask      …
//	eth0   00000000     0101A8C0  0003   0       0    100     00000000      hexadecimal, in the machine's byte order
func defaultRoute(r io.Reader) (router netip.Addr, ifname string, ok bool) {
	const up, gateway = 1, 2
	least := uint64(1) << 63
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 16)
		raw, err2 := hex.DecodeString(f[2])
		metric, err3 := strconv.ParseUint(f[6], 10, 32)
		if err != nil || err2 != nil || err3 != nil || len(raw) != 4 || flags&(up|gateway) != up|gateway || metric >= least {
			continue
		}
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], binary.BigEndian.Uint32(raw))
		router, ifname, least, ok = netip.AddrFrom4(b), f[0], metric, true
	}
	return router, ifname, ok
}

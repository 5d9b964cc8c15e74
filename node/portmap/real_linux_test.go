package portmap

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// envClient makes this test binary a client in a namespace: it maps the port of a socket, says where, and prints what
// then arrives there.
const envClient = "HEDGE_PORTMAP_CLIENT"

// TestRealGateway has miniupnpd forward a port by each protocol, and sends a packet through it:
//
//	client ns  10.77.0.2 ──── 10.77.0.1  gateway ns: miniupnpd, nftables  50.7.7.1 ──── 50.7.7.2  outside ns
func TestRealGateway(t *testing.T) {
	if which := os.Getenv(envClient); which != "" {
		beClient(t, which)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	for _, tool := range []string{"ip", "nft", "miniupnpd"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	for _, which := range []Protocol{PCP, NATPMP, UPnP} {
		t.Run(which.String(), func(t *testing.T) {
			t.Parallel()
			g := newGateway(t, int(which))
			client := exec.Command("ip", "netns", "exec", g.client, os.Args[0], "-test.run=^TestRealGateway$", "-test.v")
			client.Env = append(os.Environ(), envClient+"="+which.String())
			out, err := client.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			client.Stderr = client.Stdout
			if err := client.Start(); err != nil {
				t.Fatal(err)
			}
			defer client.Wait()
			defer client.Process.Kill()
			lines := bufio.NewScanner(out)
			var log []string
			for lines.Scan() {
				l := lines.Text()
				log = append(log, l)
				if at, ok := strings.CutPrefix(l, "mapped "); ok {
					if !strings.HasPrefix(at, "50.7.7.1:") {
						t.Errorf("mapped at %s, want the gateway's outer address", at)
					}
					host, port, _ := net.SplitHostPort(at)
					run(t, "ip", "netns", "exec", g.outside, "bash", "-c", fmt.Sprintf("for i in 1 2 3; do echo knock > /dev/udp/%s/%s; done", host, port))
				}
				if l == "arrived knock" {
					return
				}
			}
			t.Errorf("no packet came through:\n%s", strings.Join(log, "\n"))
		})
	}
}

func beClient(t *testing.T, which string) {
	pc, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	protocols := map[string]protocol{"PCP": &pcp{port: 5351}, "NAT-PMP": natpmp{port: 5351}, "UPnP": &upnp{}}
	mapped := make(chan netip.AddrPort, 1)
	c := Start(Config{Port: uint16(pc.LocalAddr().(*net.UDPAddr).Port), protocols: []protocol{protocols[which]}, Changed: func(m Mapping) {
		if m.Valid() {
			mapped <- m.External
		}
	}})
	defer c.Close()
	pc.SetDeadline(time.Now().Add(10 * time.Second))
	select {
	case at := <-mapped:
		fmt.Printf("mapped %s\n", at)
	case <-time.After(8 * time.Second):
		t.Fatalf("no mapping: %+v", c.Report())
	}
	buf := make([]byte, 100)
	n, _, err := pc.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("arrived %s\n", strings.TrimSpace(string(buf[:n])))
}

type gatewayNS struct{ client, gateway, outside string }

func newGateway(t *testing.T, i int) gatewayNS {
	t.Helper()
	id := fmt.Sprintf("hpm%d-%d", os.Getpid()%100000, i)
	g := gatewayNS{id + "c", id + "g", id + "o"}
	for _, ns := range []string{g.client, g.gateway, g.outside} {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		run(t, "ip", "-n", ns, "link", "set", "lo", "up")
	}
	wire := func(a, an, aaddr, b, bn, baddr string) {
		run(t, "ip", "link", "add", an, "netns", a, "type", "veth", "peer", "name", bn, "netns", b)
		run(t, "ip", "-n", a, "addr", "add", aaddr, "dev", an)
		run(t, "ip", "-n", b, "addr", "add", baddr, "dev", bn)
		run(t, "ip", "-n", a, "link", "set", an, "up")
		run(t, "ip", "-n", b, "link", "set", bn, "up")
	}
	wire(g.client, "eth0", "10.77.0.2/24", g.gateway, "lan", "10.77.0.1/24")
	wire(g.outside, "eth0", "50.7.7.2/24", g.gateway, "wan", "50.7.7.1/24")
	run(t, "ip", "-n", g.client, "route", "add", "default", "via", "10.77.0.1")
	run(t, "ip", "netns", "exec", g.gateway, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	rules := filepath.Join(t.TempDir(), "nft")
	write(t, rules, `table inet filter {
	chain miniupnpd { }
	chain prerouting_miniupnpd { }
	chain postrouting_miniupnpd { }
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		iifname "lan" accept
		jump miniupnpd
	}
	chain prerouting {
		type nat hook prerouting priority -100;
		jump prerouting_miniupnpd
	}
	chain postrouting {
		type nat hook postrouting priority 100;
		oifname "wan" masquerade
	}
}
`)
	run(t, "ip", "netns", "exec", g.gateway, "nft", "-f", rules)
	conf := filepath.Join(t.TempDir(), "conf")
	write(t, conf, `ext_ifname=wan
listening_ip=lan
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
uuid=00000000-0000-4000-8000-000000000001
lease_file=`+filepath.Join(t.TempDir(), "leases")+`
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
allow 1024-65535 10.77.0.0/24 1024-65535
`)
	d := exec.Command("ip", "netns", "exec", g.gateway, "miniupnpd", "-d", "-f", conf, "-P", filepath.Join(t.TempDir(), "pid"))
	out, err := d.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	log := bufio.NewScanner(out)
	said := []string{}
	for log.Scan() && !strings.Contains(log.Text(), "Listening for NAT-PMP/PCP") {
		said = append(said, log.Text())
	}
	rest := make(chan struct{})
	go func() {
		defer close(rest)
		for log.Scan() {
			said = append(said, log.Text())
		}
	}()
	t.Cleanup(func() {
		d.Process.Kill()
		<-rest
		d.Wait()
		if t.Failed() {
			t.Logf("miniupnpd:\n%s", strings.Join(said, "\n"))
		}
	})
	return g
}

func write(t *testing.T, path, s string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

package hosts

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"

	"github.com/hedge-mesh/hedge/node/key"
)

// wireGuard runs wireguard-go's own program at both ends, and configures it over its socket.
func (w *world) wireGuard(ctx context.Context, bin, prefix string, n, mtu int) error {
	if err := build(ctx, bin, "golang.zx2c4.com/wireguard"); err != nil {
		return err
	}
	keys := [2]key.NodePrivate{key.NewNode(), key.NewNode()}
	for i, ns := range []string{w.a, w.b} {
		dev := fmt.Sprintf("%s%d%c", prefix, n, 'a'+i) // the sockets of all namespaces are in one folder
		if err := w.run(ns, dev+".log", bin, "-f", dev); err != nil {
			return err
		}
		conf := fmt.Sprintf("set=1\nprivate_key=%s\nlisten_port=51820\npublic_key=%s\nendpoint=%s:51820\nallowed_ip=10.79.0.%d/32\n\n",
			key.WireGuardHex(keys[i]), publicHex(keys[1-i]), []string{w.addrB, w.addrA}[i], 2-i)
		if err := eventually(ctx, func() error { return uapi("/var/run/wireguard/"+dev+".sock", conf) }); err != nil {
			return err
		}
		for _, args := range [][]string{{"addr", "add", fmt.Sprintf("10.79.0.%d/24", i+1), "dev", dev}, {"link", "set", dev, "mtu", strconv.Itoa(mtu), "up"}} {
			if out, err := exec.CommandContext(ctx, "ip", append([]string{"-n", ns}, args...)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip: %w: %s", err, out)
			}
		}
	}
	w.address = "10.79.0.2"
	return w.reachable(ctx)
}

// uapi sends a configuration to wireguard-go's socket.
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

// build makes a program of this module's, or of one that it requires.
func build(ctx context.Context, out, pkg string) error {
	if said, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out, pkg).CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, said)
	}
	return nil
}

func stderr(err error) string {
	var x *exec.ExitError
	if errors.As(err, &x) {
		return string(x.Stderr)
	}
	return ""
}

func publicHex(p key.NodePrivate) string {
	b := key.ExchangePublic(p).Raw()
	return hex.EncodeToString(b[:])
}

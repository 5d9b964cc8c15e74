package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// The main goroutine keeps the main thread, so that Do never takes it into a namespace: unlike others it cannot be
// thrown away afterwards, and /proc would then show the whole test process as living there.
func init() { runtime.LockOSThread() }

// Space is a network namespace.
type Space struct{ ns string }

// Command is exec.CommandContext in this namespace.
func (s Space) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", s.ns, name}, args...)...)
}

// IP runs statements of the ip command, one a line, without the "ip".
func (s Space) IP(lines ...string) error {
	return feedTo(exec.Command("ip", "-n", s.ns, "-batch", "-"), strings.Join(lines, "\n")+"\n")
}

// NFT loads an nftables script.
func (s Space) NFT(script string) error {
	return feedTo(s.Command(context.Background(), "nft", "-f", "-"), script)
}

func feedTo(cmd *exec.Cmd, script string) error {
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s\n%s", strings.Join(cmd.Args, " "), err, out, script)
	}
	return nil
}

// Sysctl sets values below /proc/sys/net: "ipv4/ip_forward=1".
func (s Space) Sysctl(settings ...string) error {
	return s.Do(func() (err error) {
		for _, kv := range settings {
			name, value, _ := strings.Cut(kv, "=")
			err = errors.Join(err, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
		}
		return err
	})
}

// Do runs f on a thread that is in this namespace: sockets that f opens stay there. f must not start goroutines that
// open sockets.
func (s Space) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, so nothing else lands in here
		ns, err := os.Open("/run/netns/" + s.ns)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter %s: %w", s.ns, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// FlushConntrack makes the namespace forget all connections that it tracks, and so all its NAT mappings.
//
//	nlmsghdr   length 20 | type 0x0102: ctnetlink, delete | request, ack | sequence | port
//	nfgenmsg   family 0: any | version 0 | resource 0        no attributes: every entry
func (s Space) FlushConntrack() error {
	return s.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		msg := []byte{20, 0, 0, 0, 2, 1, unix.NLM_F_REQUEST | unix.NLM_F_ACK, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		var b [128]byte
		n, _, err := unix.Recvfrom(fd, b[:], 0)
		if err != nil {
			return err
		}
		if n < 20 || b[16]|b[17]|b[18]|b[19] != 0 { // nlmsgerr.error
			return fmt.Errorf("flush connections of %s: answer % x", s.ns, b[:n])
		}
		return nil
	})
}

package bind

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watchSystem calls changed after links, addresses or routes of this machine may have changed (rtnetlink(7)), on a goroutine of
// its own, until stop is called, which waits for it.
func watchSystem(changed func()) (stop func(), err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("bind: netlink: %w", err)
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
		unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind: netlink: %w", err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	done := make(chan struct{})
	go func() {
		defer close(done)
		// What the messages say is not read: the addresses are asked for anew, which cannot be forged or missed.
		buf := make([]byte, 4096)
		for bad := 0; bad < 100; {
			if _, err := f.Read(buf); err == nil {
				bad = 0
			} else if bad++; errors.Is(err, os.ErrClosed) {
				return
			}
			changed() // also for ENOBUFS: some were lost
		}
	}()
	return func() { f.Close(); <-done }, nil
}

package hatch

import "golang.org/x/sys/unix"

// peer asks the kernel by LOCAL_PEERCRED (unix(4)).
func peer(fd int) (int, error) {
	cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}

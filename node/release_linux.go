package node

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// release gives the whole pages of memory whose content nobody needs back to the system: what is read there next are
// zeros. It must hold no pointers.
func release(b []byte) {
	page := uintptr(unix.Getpagesize())
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	from, to := (at+page-1)&^(page-1)-at, (at+uintptr(len(b)))&^(page-1)-at
	if from < to {
		_ = unix.Madvise(b[from:to], unix.MADV_DONTNEED)
	}
}

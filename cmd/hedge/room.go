package main

import (
	"os"
	"runtime"
)

// sentries is how many threads of a node with an interface wait by themselves for packets of flows that send little
// (node/sentry): for those of the host's programs, and for those of peers.
const sentries = 2

// makeRoom has the runtime let the sentries go on while a transfer has all the threads that it would else let run. A thread
// that comes back from the kernel then waits until the runtime has a place for it, for up to 10 ms. The kernel shares out the
// cores all the same. Who has said how many threads there are to be ($GOMAXPROCS) is heeded.
func makeRoom() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + sentries)
	}
	hasten(keenSlack)
}

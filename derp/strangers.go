package derp

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// MaxStrangers is how many connections may be at once that have not come to anything yet: with 12 kB each they take less
// than 64 MiB.
const MaxStrangers = 4096

// Strangers makes a ConnState hook for the http.Server around a relay, that keeps at most max connections which have not
// been upgraded or answered yet. One more costs the oldest its place: whoever says what it wants at once has nothing to
// fear from those who say nothing.
func Strangers(max int) func(net.Conn, http.ConnState) {
	var mu sync.Mutex
	all, at := list.New(), map[net.Conn]*list.Element{}
	return func(c net.Conn, s http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		switch s {
		case http.StateNew:
			at[c] = all.PushBack(c)
			if all.Len() <= max {
				return
			}
			old := all.Remove(all.Front()).(net.Conn)
			delete(at, old)
			if t, ok := old.(*tls.Conn); ok {
				old = t.NetConn() // without TLS's goodbye, which can wait
			}
			old.Close()
		case http.StateHijacked, http.StateClosed, http.StateIdle:
			if e := at[c]; e != nil {
				all.Remove(e)
				delete(at, c)
			}
		}
	}
}

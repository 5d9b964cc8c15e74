package device

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// lendingPort is a port that lends what it is read into, one packet behind the other, and overwrites all of it before it
// does so again.
type lendingPort struct {
	*port
	block [1 << 16]byte
	bad   func(error)
}

func (p *lendingPort) Lends() bool       { return true }
func (p *lendingPort) Lanes() []ReadFunc { return nil }

func (p *lendingPort) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i := range p.block {
		p.block[i] = 0xee
	}
	for i, b := range bufs {
		if b != nil {
			p.bad(fmt.Errorf("buffer %d of %d is not nil", i, len(bufs)))
		}
	}
	own := make([][]byte, len(bufs))
	for at, i := 0, 0; i < len(own); i++ {
		own[i], at = p.block[at:at+offset+100:at+offset+100+PaddingMultiple+chacha20poly1305.Overhead], at+200
	}
	n, err := p.read(p.out, own, sizes, offset)
	copy(bufs, own[:n])
	return n, err
}

// Of a TUN device that lends, packets are sealed where they are, and what waits for a session is kept.
func TestLent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, [2]bool{true, true})
		p.devs[0].Close()
		tun := &lendingPort{port: newPort(), bad: func(err error) { t.Error(err) }}
		d := NewDevice(tun, p.ends[0], NewLogger(LogLevelSilent, ""))
		t.Cleanup(d.Close)
		p.devs[0] = d
		p.set(0, fmt.Sprintf("private_key=%s\n%s", hex.EncodeToString(p.keys[0][:]), p.peerConf(1)))
		if err := d.Up(); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		asked := false
		p.setTap(func(from int, msg []byte) bool { // the first initiation is lost
			mu.Lock()
			defer mu.Unlock()
			lost := !asked && from == 0 && msg[0] == MessageInitiationType
			asked = asked || lost
			return !lost
		})
		const n = 300
		for i := 0; i < n; i += 3 {
			tun.out <- [][]byte{packet(0, 1, i, 64+i%37), packet(0, 1, i+1, 100), packet(0, 1, i+2, 65)}
			if i == n/2 {
				time.Sleep(2 * RekeyTimeout) // now there is a session
			}
		}
		synctest.Wait()
		if err := same(p.ports[1].seqs(), upTo(n)); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(tun.block[:8], bytes.Repeat([]byte{0xee}, 8)) {
			t.Error("a packet was written to when it was nobody's any more")
		}
	})
}

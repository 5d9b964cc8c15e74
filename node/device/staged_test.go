package device

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// staged is what is staged for a peer: how many packets, and the bytes they count as.
func staged(peer *Peer) (int, int64) {
	peer.queue.sending.Lock()
	defer peer.queue.sending.Unlock()
	sum := int64(0)
	for _, pkt := range peer.queue.staged {
		sum += stagedSize(pkt)
	}
	if sum != peer.queue.stagedSize {
		return -1, sum
	}
	return len(peer.queue.staged), sum
}

// Of what waits for a session with one peer the newest stay.
func TestStagedOfOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, [2]bool{true, true})
		p.setTap(func(int, []byte) bool { return false })
		const size = 1400
		fit := MaxStagedSizePerPeer / int(stagedSize(make([]byte, MessageTransportHeaderSize+size)))
		n := 2 * fit
		for i := range n {
			p.ports[0].out <- [][]byte{packet(0, 1, i, size)}
			synctest.Wait()
		}
		if got, bytes := staged(p.peer(0)); got != fit || bytes > MaxStagedSizePerPeer {
			t.Errorf("%d packets of %d bytes are staged, want %d", got, bytes, fit)
		}
		p.setTap(nil)
		time.Sleep(2 * RekeyTimeout)
		synctest.Wait()
		if err := same(p.ports[1].seqs(), upTo(n)[n-fit:]); err != nil {
			t.Error(err)
		}
		if got := p.devs[0].(*Device).stagedSize.Load(); got != 0 {
			t.Errorf("%d bytes are counted as staged, and none are", got)
		}
	})
}

// A program that sprays more addresses than there is room for takes no more than the room. Whom it is for is asked for a
// session all the same, and a peer that has one is not in its way.
func TestSpray(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const peers, packets, size = 700, 10, 1400
		p := newPair(t, [2]bool{true, true})
		p.send(0, 0)
		synctest.Wait()
		asked := 0
		p.setTap(func(_ int, msg []byte) bool {
			if msg[0] == MessageInitiationType {
				asked++
			}
			return msg[0] == MessageTransportType
		})
		dev := p.devs[0].(*Device)
		var conf strings.Builder
		for i := range peers {
			k, err := newPrivateKey()
			if err != nil {
				t.Fatal(err)
			}
			pub := k.publicKey()
			fmt.Fprintf(&conf, "public_key=%s\nendpoint=10.0.0.1:1\nallowed_ip=10.1.%d.%d/32\n", hex.EncodeToString(pub[:]), (i+256)>>8, (i+256)&255)
		}
		p.set(0, conf.String())
		for range packets {
			var batch [][]byte
			for i := range peers {
				batch = append(batch, packet(0, i+256, 0, size))
				if len(batch) == 100 {
					p.ports[0].out <- batch
					batch = nil
				}
			}
			synctest.Wait()
		}
		sum := int64(0)
		dev.peers.RLock()
		for _, peer := range dev.peers.keyMap {
			n, bytes := staged(peer)
			if n < 0 || n > packets {
				t.Errorf("%d packets of %d bytes are staged, of %d", n, bytes, packets)
			}
			sum += bytes
		}
		dev.peers.RUnlock()
		if all := dev.stagedSize.Load(); all != sum || all > MaxStagedSize || all < MaxStagedSize-2000 {
			t.Errorf("%d bytes are counted as staged, and %d are; room is for %d", all, sum, MaxStagedSize)
		}
		if asked != peers {
			t.Errorf("%d peers were asked for a session, of %d", asked, peers)
		}
		p.send(0, 1)
		synctest.Wait()
		if err := same(p.ports[1].seqs(), upTo(2)); err != nil {
			t.Errorf("to a peer that there is a session with: %v", err)
		}
		if err := p.devs[0].Down(); err != nil {
			t.Fatal(err)
		}
		if all := dev.stagedSize.Load(); all != 0 {
			t.Errorf("%d bytes are counted as staged by a device that is down", all)
		}
	})
}

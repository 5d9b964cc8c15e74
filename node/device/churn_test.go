package device

import (
	"encoding/hex"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// Peers come and go, devices go down and up and their sockets change, sessions expire, all while packets flow both ways:
// nothing gets stuck, races, or stays counted. Afterwards packets flow again.
func TestChurn(t *testing.T) {
	p := newPair(t, [2]bool{true, true})
	dev := p.devs[0].(*Device)
	pub := p.keys[1].publicKey()
	var stop atomic.Bool
	var traffic, changes sync.WaitGroup
	for i := range p.ports {
		traffic.Go(func() {
			for n := 0; !stop.Load(); n += 2 {
				p.send(i, n, n+1)
			}
		})
		traffic.Go(func() {
			for !stop.Load() {
				p.ports[i].beside <- numbered(i, []int{1})
			}
		})
	}
	for _, change := range []func() error{
		func() error {
			return dev.IpcSet(fmt.Sprintf("public_key=%s\nremove=true\n", hex.EncodeToString(pub[:])))
		},
		func() error { return dev.IpcSet(p.peerConf(1)) },
		func() error { return dev.IpcSet(p.peerConf(1) + "persistent_keepalive_interval=1\n") },
		func() error { return p.devs[1].BindUpdate() },
		func() error { return dev.BindUpdate() },
		func() error { return p.devs[1].Down() },
		func() error { return p.devs[1].Up() },
		func() error {
			if peer := dev.LookupPeer(pub); peer != nil {
				peer.ExpireCurrentKeypairs()
			}
			return nil
		},
		func() error { dev.SendKeepalivesToPeersWithCurrentKeypair(); return nil },
	} {
		changes.Go(func() {
			for range 200 {
				if err := change(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	changes.Wait()
	stop.Store(true)
	traffic.Wait()
	for _, d := range p.devs {
		if err := d.Up(); err != nil {
			t.Fatal(err)
		}
		defer d.Down()
	}
	dev.RemoveAllPeers()
	if all := dev.stagedSize.Load(); all != 0 {
		t.Errorf("%d bytes are counted as staged, for nobody", all)
	}
}

// Sockets are replaced while a receiver sends: what it has staged goes out at the first message of a new session. To
// wait for it with a lock held that it needs to send would be to wait for ever.
func TestBindUpdateWhileReceiverSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, [2]bool{true, true})
		var held []byte
		p.setTap(func(from int, msg []byte) bool {
			if from == 0 && msg[0] == MessageTransportType {
				held = msg
			}
			return held == nil
		})
		p.send(0, 0) // 1 answers, and may send when it has heard of 0 again
		synctest.Wait()
		p.send(1, 0, 1, 2)
		synctest.Wait()
		if n, _ := staged(p.peer(1)); held == nil || n != 3 {
			t.Fatalf("%d packets are staged, want 3", n)
		}
		p.setTap(nil)
		p.ends[1].onClose = func() {
			p.ends[1].take(held)
			for len(p.ends[1].in) > 0 { // it is taken before the socket is gone
				runtime.Gosched()
			}
		}
		if err := p.devs[1].BindUpdate(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for i, want := range [][]int{{0, 1, 2}, {0}} {
			if err := same(p.ports[i].seqs(), want); err != nil {
				t.Errorf("to %d: %v", i, err)
			}
		}
	})
}

// Close ends a Write that does not return by itself, and waits for it.
func TestCloseWhileWriteBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, [2]bool{true, true})
		p.ports[1].block = make(chan struct{})
		p.send(0, 0)
		synctest.Wait()
		p.send(0, 1, 2)
		synctest.Wait()
		if err := same(p.ports[1].seqs(), upTo(1)); err != nil {
			t.Fatalf("while the first is being written: %v", err)
		}
		p.devs[1].(*Device).RemoveAllPeers() // does not wait
		p.devs[1].Close()
		if _, open := <-p.devs[1].(*Device).Wait(); open {
			t.Error("Close returned, and the device is not closed")
		}
	})
}

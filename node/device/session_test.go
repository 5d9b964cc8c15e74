package device

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Ten minutes of packets both ways between this device and WireGuard's own, whoever begins: all arrive, once and in order,
// and the sessions are replaced in time.
func TestInterop(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, k.ours)
				handshakes := 0
				p.setTap(func(_ int, msg []byte) bool {
					if msg[0] == MessageResponseType {
						handshakes++
					}
					return true
				})
				const n = 600
				for i := range n {
					p.send(0, 3*i, 3*i+1, 3*i+2)
					synctest.Wait()
					p.send(1, 3*i, 3*i+1, 3*i+2)
					time.Sleep(time.Second)
				}
				synctest.Wait()
				for i, port := range p.ports {
					if err := same(port.seqs(), upTo(3*n)); err != nil {
						t.Errorf("to %d: %v", i, err)
					}
				}
				if want := n / int(RekeyAfterTime/time.Second); handshakes < want || handshakes > want+1 {
					t.Errorf("%d handshakes in %d s, want %d", handshakes, n, want)
				}
			})
		})
	}
}

// Who only receives answers with keepalives, and makes a new session itself before the old one ends.
func TestOneWay(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, k.ours)
				p.send(0, 0) // the receiver of all others is the initiator
				synctest.Wait()
				keepalives := 0
				p.setTap(func(from int, msg []byte) bool {
					if from == 0 && len(msg) == MessageKeepaliveSize {
						keepalives++
					}
					return true
				})
				const n = 600
				for i := range n {
					p.send(1, i)
					time.Sleep(time.Second)
				}
				synctest.Wait()
				if err := same(p.ports[0].seqs(), upTo(n)); err != nil {
					t.Error(err)
				}
				if want := n / int(KeepaliveTimeout/time.Second); keepalives < want/2 || keepalives > want+5 {
					t.Errorf("%d keepalives in %d s, want about %d", keepalives, n, want)
				}
			})
		})
	}
}

// What is sent while there is no session is sent in its order when there is one, and before what comes later.
func TestOrderAcrossHandshake(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, k.ours)
				lose := 3 // initiations
				p.setTap(func(from int, msg []byte) bool {
					if msg[0] == MessageInitiationType && lose > 0 {
						lose--
						return false
					}
					return true
				})
				const batches, size = 40, 25
				for i := range batches {
					p.send(0, upTo(batches * size)[i*size:(i+1)*size]...)
					time.Sleep(time.Second / 2)
				}
				synctest.Wait()
				if err := same(p.ports[1].seqs(), upTo(batches*size)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Keypairs that run out in the middle of traffic lose and reorder nothing.
func TestExhaustion(t *testing.T) {
	tests := []struct {
		name    string
		exhaust func(*Peer)
	}{
		{"expired", (*Peer).ExpireCurrentKeypairs},
		{"the last nonce is within a batch", func(peer *Peer) { peer.keypairs.Current().sendNonce.Store(RejectAfterMessages - 5) }},
		{"the last nonce ends a batch", func(peer *Peer) { peer.keypairs.Current().sendNonce.Store(RejectAfterMessages - 10) }},
		{"it is time for a new one", func(peer *Peer) { peer.keypairs.Current().sendNonce.Store(RekeyAfterMessages + 1) }},
	}
	for _, tt := range tests {
		for _, k := range kinds[:2] {
			t.Run(tt.name+", "+k.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPair(t, k.ours)
					const batches, size = 60, 10
					for i := range batches {
						if i%10 == 5 {
							tt.exhaust(p.peer(0))
						}
						p.send(0, upTo(batches * size)[i*size:(i+1)*size]...)
						time.Sleep(time.Second)
					}
					synctest.Wait()
					if err := same(p.ports[1].seqs(), upTo(batches*size)); err != nil {
						t.Error(err)
					}
					if k := p.peer(0).keypairs.Current(); k.sendNonce.Load() > batches*size || time.Since(k.created) > batches*time.Second/2 {
						t.Errorf("the session is as it was: %d messages", k.sendNonce.Load())
					}
				})
			})
		}
	}
}

// Two lanes send at once: each keeps its order, over handshakes and keypairs that run out, and nothing is lost.
func TestLanesOverHandshakes(t *testing.T) {
	for _, k := range kinds[:2] {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, k.ours)
				const batches, size, lane = 60, 10, 1 << 20 // which the numbers of the second begin with
				second := upTo(lane + batches*size)[lane:]
				for i := range batches {
					if i%10 == 5 {
						p.peer(0).keypairs.Current().sendNonce.Store(RejectAfterMessages - 15) // enough for one of them
					}
					p.send(0, upTo(batches * size)[i*size:(i+1)*size]...)
					p.ports[0].beside <- numbered(0, second[i*size:(i+1)*size])
					if i%3 > 0 { // else the next follows at once
						time.Sleep(time.Second)
					}
				}
				synctest.Wait()
				var got [2][]int
				for _, seq := range p.ports[1].seqs() {
					got[seq/lane] = append(got[seq/lane], seq)
				}
				for i, want := range [][]int{upTo(batches * size), second} {
					if err := same(got[i], want); err != nil {
						t.Errorf("lane %d: %v", i, err)
					}
				}
			})
		})
	}
}

// A message counts once, and only as it was sent; one that was damaged on its way uses nothing up.
func TestReplayAndTampering(t *testing.T) {
	flip := func(at int) func([]byte) {
		return func(msg []byte) { msg[(at+len(msg))%len(msg)] ^= 1 }
	}
	tests := []struct {
		name   string
		tamper func(msg []byte)
	}{
		{"type", flip(0)},
		{"receiver", flip(MessageTransportOffsetReceiver)},
		{"counter", flip(MessageTransportOffsetCounter)},
		{"high bits of the counter", flip(MessageTransportOffsetCounter + 7)},
		{"content", flip(MessageTransportOffsetContent)},
		{"tag", flip(-1)},
		{"replay", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, [2]bool{true, true})
				p.send(0, 0)
				synctest.Wait()
				var held [][]byte
				p.setTap(func(_ int, msg []byte) bool {
					held = append(held, msg)
					return false
				})
				p.send(0, 1, 2, 3)
				synctest.Wait()
				if len(held) != 3 {
					t.Fatalf("%d messages for 3 packets", len(held))
				}
				for _, msg := range held {
					if tt.tamper != nil {
						bad := slices.Clone(msg)
						tt.tamper(bad)
						p.ends[1].take(bad)
						synctest.Wait()
					}
				}
				if err := same(p.ports[1].seqs(), upTo(1)); err != nil {
					t.Errorf("tampered: %v", err)
				}
				for range 2 {
					for _, msg := range held {
						p.ends[1].take(slices.Clone(msg))
					}
				}
				synctest.Wait()
				if err := same(p.ports[1].seqs(), upTo(4)); err != nil {
					t.Errorf("as they were sent, twice: %v", err)
				}
			})
		})
	}
}

// A packet whose header says something else than the packet, or whose source is not the peer's, is dropped.
func TestBadPackets(t *testing.T) {
	v6 := func(payload int) []byte {
		b := make([]byte, 80)
		b[0], b[4], b[5] = 0x60, byte(payload>>8), byte(payload)
		copy(b[8:], []byte{0xfd, 15: 0})
		copy(b[24:], []byte{0xfd, 15: 1})
		return b
	}
	foreign := packet(0, 1, 1, 64)
	foreign[15] = 7
	long := packet(0, 1, 1, 64)
	long[2] = 1
	short := packet(0, 1, 1, 64)
	short[3] = 19
	tests := []struct {
		name string
		pkt  []byte
		want bool
	}{
		{"IPv4", packet(0, 1, 1, 64), true},
		{"of a stranger", foreign, false},
		{"longer than it is", long, false},
		{"shorter than its header", short, false},
		{"IPv6", v6(40), true},
		{"IPv6, longer than it is", v6(41 + PaddingMultiple), false},
		{"IPv6, of a length that does not fit in 16 bits with the header", v6(65536 - 40), false},
		{"the same, and what is left is a header", v6(65535), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, [2]bool{true, true})
				p.set(0, p.peerConf(1)+"allowed_ip=fd00::1/128\n")
				p.set(1, p.peerConf(0)+"allowed_ip=fd00::/128\n")
				p.ports[0].out <- [][]byte{tt.pkt}
				synctest.Wait()
				if got := len(p.ports[1].seqs()) == 1; got != tt.want {
					t.Errorf("arrived %v, want %v", got, tt.want)
				}
			})
		})
	}
}

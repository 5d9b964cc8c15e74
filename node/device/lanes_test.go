package device

import (
	"encoding/hex"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
)

// lanedPort is a port with a second function to read it.
type lanedPort struct {
	*port
	second *port
}

func (p lanedPort) Lanes() []ReadFunc { return []ReadFunc{p.Read, p.second.Read} }

func (p lanedPort) Close() error {
	p.second.Close()
	return p.port.Close()
}

// What one function has read does not wait for what the other's goroutine is sending, nor, without a session, for that.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, [2]bool{true, true})
		p.devs[0].Close()
		tun := lanedPort{newPort(), newPort()}
		d := NewDevice(tun, p.ends[0], NewLogger(LogLevelSilent, ""))
		t.Cleanup(d.Close)
		p.devs[0] = d
		p.set(0, fmt.Sprintf("private_key=%s\n%s", hex.EncodeToString(p.keys[0][:]), p.peerConf(1)))
		if err := d.Up(); err != nil {
			t.Fatal(err)
		}
		send := func(on *port, seqs ...int) {
			var batch [][]byte
			for _, s := range seqs {
				batch = append(batch, packet(0, 1, s, 64))
			}
			on.out <- batch
		}
		send(tun.port, 1, 2)
		send(tun.second, 11, 12)
		synctest.Wait()
		got := p.ports[1].seqs()
		slices.Sort(got) // both were staged, in either order
		if !slices.Equal(got, []int{1, 2, 11, 12}) {
			t.Errorf("%v came before and after the handshake", got)
		}

		hold := make(chan struct{})
		held := false
		p.setTap(func(from int, _ []byte) bool {
			if from == 0 && !held {
				held = true
				<-hold
			}
			return true
		})
		send(tun.port, 3, 4)
		synctest.Wait()
		send(tun.second, 13, 14)
		synctest.Wait()
		if got := p.ports[1].seqs()[4:]; !slices.Equal(got, []int{13, 14}) {
			t.Errorf("%v came while the other function's batch was on its way", got)
		}
		close(hold)
		synctest.Wait()
		if got := p.ports[1].seqs()[4:]; !slices.Equal(got, []int{13, 14, 3, 4}) {
			t.Errorf("%v came in all", got)
		}
	})
}

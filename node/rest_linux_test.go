package node

import (
	"net"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/hedge-mesh/hedge/acl/filter"
	"github.com/hedge-mesh/hedge/node/bind"
	"github.com/hedge-mesh/hedge/node/key"
	"github.com/hedge-mesh/hedge/node/udp"
)

// A node that falls silent has its sockets give back what a transfer has left with them. The sockets and who reads them
// are real, and so outside the bubble in which the node's clock need not wait. What is measured is the memory of a
// process, so it has one of its own: here the connections of the tests before leave theirs only when their timers end.
func TestRestOfSockets(t *testing.T) {
	const alone = "HEDGE_TEST_ALONE"
	if os.Getenv(alone) == "" {
		c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		c.Env = append(os.Environ(), alone+"=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	private := key.NewNode()
	b, err := bind.New(bind.Config{Node: key.ExchangePublic(private), Disco: key.NewDisco(), Machine: key.NewMachine(), Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	e := &enforcer{filter: filter.New(filter.Options{}), bind: b, tun: newTunnel(&memDevice{}, nil)}
	e.cur.Store(&enforced{})
	inUse := func() int {
		giveBack()
		n, _ := heap()
		return int(n)
	}
	atFirst := inUse()
	transfer(t, b)
	const much = 1 << 20 // it leaves 2 MB, and all else here is little
	for end := time.Now().Add(10 * time.Second); inUse() < atFirst+much; {
		if time.Now().After(end) {
			t.Fatalf("the transfer has left %d bytes, so this test tests nothing", inUse()-atFirst)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		e.wake, e.tun.busy = make(chan struct{}, 1), make(chan struct{}, 1) // what the clock waits for is the bubble's
		if e.roster, err = newRoster(b.Deliver, b.Forget, private, e.log); err != nil {
			t.Fatal(err)
		}
		e.roster.swept = time.Now().Add(24 * time.Hour) // it has no device, and so nobody to take out of one
		done := make(chan struct{})
		defer close(done)
		go e.clock(done)
		for range 100 { // the first may come before the reader waits
			e.tun.rx.add(restWorth, 0, 0) // the transfer, as it is counted
			<-time.After(restAfter + 3*tickEvery)
			synctest.Wait()
			if inUse() < atFirst+much {
				return
			}
		}
		t.Errorf("the node rests, and %d bytes are still the sockets'", inUse()-atFirst)
	})
}

// transfer has a bind receive more at once than it has buffers for at first, and then wait for more.
func transfer(t *testing.T, b *bind.Bind) {
	t.Helper()
	c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(b.Port())})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 200 { // few enough for the socket to keep until it is read
		if _, err := c.Write(make([]byte, 100+i%2)); err != nil { // of different sizes, which are not joined
			t.Fatal(err)
		}
	}
	fns, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // who reads IPv4; there is nothing for the others
		defer close(ended)
		bufs, sizes := readBufs(udp.Batch, 2048)
		for eps := make([]conn.Endpoint, len(bufs)); err == nil; {
			_, err = fns[0](bufs, sizes, eps)
		}
	}()
	t.Cleanup(func() {
		b.Close()
		<-ended
	})
}

package node

import (
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/hedge-mesh/hedge/acl/filter"
)

// Flows that send little are there from their last packet, sent or heard, for as long as they may go on.
func TestCompany(t *testing.T) {
	for _, c := range []struct {
		name  string
		sent  time.Duration // before; 0 for never
		heard bool
		want  int // packets of a batch of 128
	}{
		{"nobody", 0, false, 128},
		{"one has just sent", time.Nanosecond, false, companyBatch},
		{"one may go on", companyStays - time.Nanosecond, false, companyBatch},
		{"one is over", companyStays, false, 128},
		{"a peer's is heard", 0, true, companyBatch},
		{"a peer's is heard, ours is over", companyStays, true, companyBatch},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				some := company{heard: func() bool { return c.heard }}
				if c.sent != 0 {
					some.sent.Store(time.Now().Add(-c.sent).UnixNano())
				}
				if n := some.batch(128); n != c.want {
					t.Errorf("batches of %d, want %d", n, c.want)
				}
				if n := some.batch(16); n != 16 {
					t.Errorf("a batch of 16 is one of %d", n)
				}
			})
		})
	}
}

// Both directions have short batches in company, and a packet of a flow that sends little is company.
func TestCompanyOfBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dev, from := &askedDevice{}, &askedBind{}
		tn := newTunnel(dev, filter.New(filter.Options{}))
		w := &screened{Bind: from, company: &tn.company}
		fns, _, err := w.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		bufs, sizes := readBufs(128, 2048)
		both := func(when string, want int) {
			t.Helper()
			if _, err := tn.Read(bufs, sizes, 16); err != nil {
				t.Fatal(err)
			}
			if _, err := fns[0](bufs, sizes, make([]conn.Endpoint, 128)); err != nil {
				t.Fatal(err)
			}
			if dev.most != want || from.most != want {
				t.Errorf("%s: batches of %d out and %d in, want %d", when, dev.most, from.most, want)
			}
		}
		both("alone", 128)
		dev.pkt = tcp4("100.64.0.1:1000", "100.64.0.2:5432", 1, 0, tcpSYN)
		if _, err := tn.Read(bufs, sizes, 16); err != nil {
			t.Fatal(err)
		}
		dev.pkt = nil
		both("in company", companyBatch)
		<-time.After(companyStays)
		both("alone again", 128)
	})
}

// askedDevice is a tun.Device that notes how many packets it was last asked for, and has one at most.
type askedDevice struct {
	tun.Device
	most int
	pkt  []byte
}

func (d *askedDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.most, sizes[0] = len(bufs), copy(bufs[0][offset:], d.pkt)
	return 1, nil
}

func (*askedDevice) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }

// askedBind is a conn.Bind that notes the same of its receive function, and receives nothing.
type askedBind struct {
	conn.Bind
	most int
}

func (b *askedBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func(bufs [][]byte, _ []int, _ []conn.Endpoint) (int, error) {
		b.most = len(bufs)
		return 0, nil
	}}, port, nil
}

package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/acl/filter"
	"github.com/hedge-mesh/hedge/coordinator/wire"
	"github.com/hedge-mesh/hedge/derp"
	"github.com/hedge-mesh/hedge/node/key"
)

// A coordinator's tickets say what time it is. While that is not what the node's clock says, rules with a window are
// shut and others are not, and asked anew the coordinator answers with another ticket.
func TestClockOfTheCoordinator(t *testing.T) {
	d := newDesk(t)
	hellos := make(chan wire.Hello, 4)
	var nodeKey key.NodePublic
	d.hello = func(d *desk, m key.MachinePublic, h *wire.Hello) []any {
		nodeKey = h.Node
		hellos <- *h
		keys := map[acl.NodeID]key.NodePublic{1: h.Node, 2: key.ExchangePublic(key.NewNode())}
		mp := d.deskMap(5, 1, keys)
		always := mp.Rules[0]
		always.Dst = []acl.Target{{Set: "db", Ports: []acl.PortRange{{First: 22, Last: 22}}}}
		mp.Rules[0].Window = "daily 00:00-24:00 UTC"
		mp.Rules = append(mp.Rules, always)
		if h.Revision != 0 {
			return []any{d.ticket(m, h.Node), &wire.Delta{From: 5, Revision: 5}}
		}
		return []any{d.ticket(m, h.Node), wire.Diff(nil, mp)}
	}
	n := startNode(t, d.config("web", "secret"))
	receive(t, hellos, "hello")
	ask := func(port uint16) filter.Reason {
		return n.filter.Check(netip.MustParseAddrPort("100.64.0.1:9"), netip.AddrPortFrom(netip.MustParseAddr("100.64.0.2"), port), protoTCP, time.Now()).Reason
	}
	apart := func(by time.Duration, control key.ControlPrivate) *wire.Ticket {
		t := derp.Ticket{Node: nodeKey, Machine: n.machine, Issued: time.Now().Add(by), Expires: time.Now().Add(by + time.Hour)}
		return &wire.Ticket{Signed: t.Sign(control)}
	}
	for _, tt := range []struct {
		name   string
		ticket *wire.Ticket
		want   filter.Reason
	}{
		{"two hours ahead", apart(2*time.Hour, d.control), filter.ClockDoubt},
		{"right", apart(0, d.control), filter.ByRule},
		{"two hours behind", apart(-2*time.Hour, d.control), filter.ClockDoubt},
		{"right again", apart(-time.Second, d.control), filter.ByRule},
		{"of somebody else", apart(2*time.Hour, key.NewControl()), filter.ByRule},
	} {
		d.send(n.machine, tt.ticket)
		until(t, n, tt.name, func(Status) bool {
			return string(n.enforce.cur.Load().m.Ticket.Signed) == string(tt.ticket.Signed)
		})
		if windowed, always := ask(5432), ask(22); windowed != tt.want || always != filter.ByRule {
			t.Errorf("%s: %v with a window and %v without, want %v", tt.name, windowed, always, tt.want)
		}
	}
	d.send(n.machine, apart(2*time.Hour, d.control))
	until(t, n, "in doubt", func(Status) bool { return n.filter.Doubt() == filter.ClockApart })
	n.control.ask()
	if h := receive(t, hellos, "hello anew"); h.Revision != 5 {
		t.Errorf("hello %+v", h)
	}
	until(t, n, "in no doubt", func(Status) bool { return n.filter.Doubt() == filter.Believed })
}

// A Map from the disk says by its ticket when it was made: a clock that is behind that is in doubt.
func TestClockBehindTheMap(t *testing.T) {
	control := key.NewControl()
	e := &enforcer{pin: key.PublicOf(control)}
	at := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	good := derp.Ticket{Node: key.ExchangePublic(key.NewNode()), Machine: key.PublicOf(key.NewMachine()), Issued: at, Expires: at.Add(time.Hour)}
	for _, tt := range []struct {
		name   string
		signed []byte
		now    time.Time
		want   time.Time
	}{
		{"in its time", good.Sign(control), at, at},
		{"made later than now", good.Sign(control), at.Add(-100 * time.Hour), at},
		{"expired", good.Sign(control), at.Add(100 * time.Hour), at},
		{"of somebody else", good.Sign(key.NewControl()), at, time.Time{}},
		{"none", nil, at, time.Time{}},
	} {
		if got := e.issued(wire.Ticket{Signed: tt.signed}, tt.now); !got.Equal(tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

package filter_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// A connection of a real stack that has a segment missing ends at once when it is cut, also if it has just challenged the RST
// of a peer that was cut first: within half a second it challenges no other.
//
//	b  1 ───▶   2 ──✗   3 ───▶   4 ──✗   cut: an RST behind 4 ───▶
//	a                            ◀─── challenge                     cut: an RST at 2, and behind 3
func TestCutWithSegmentMissing(t *testing.T) {
	ha, hb := newHosts(t)
	hb.loses = func(pkt []byte) bool {
		return bytes.ContainsAny(header.TCP(header.IPv4(pkt).Payload()).Payload(), "24")
	}
	said := make(chan header.TCP, 64) // by a
	ha.loses = func(pkt []byte) bool {
		select {
		case said <- header.TCP(header.IPv4(pkt).Payload()):
		default:
		}
		return false
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { ha.carry(ctx, hb, 0, 0) })
	wg.Go(func() { hb.carry(ctx, ha, 0, 0) })
	t.Cleanup(func() {
		cancel()
		ha.stack.Destroy()
		hb.stack.Destroy()
		wg.Wait()
	})
	at := tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(hb.ip.As4()), Port: 80}
	l, err := gonet.ListenTCP(hb.stack, at, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := gonet.DialContextTCP(ctx, ha.stack, at, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"1", "2", "3", "4"} {
		if _, err := server.Write([]byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for s := range said { // until a has 3
		if len(s.ParsedOptions().SACKBlocks) > 0 {
			break
		}
	}
	peers := hb.filter.Set(nil, time.Now())
	if len(peers) != 1 || len(peers[0].ToPeer) != 1 {
		t.Fatalf("%+v", peers)
	}
	for len(said) > 0 {
		<-said
	}
	ha.inject(peers[0].ToPeer[0])
	<-said // the challenge
	cuts := ha.filter.Set(nil, time.Now())
	if len(cuts) != 1 || len(cuts[0].ToSelf) != 2 {
		t.Fatalf("%+v", cuts)
	}
	for _, b := range cuts[0].ToSelf {
		ha.deliver(b)
	}
	client.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF || err.(net.Error).Timeout() {
		t.Errorf("after the cut: %v", err)
	}
}

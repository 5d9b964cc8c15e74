package netstack

import (
	"bytes"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A flow is what TCP says it is, or else all between two hosts.
func TestFlowOf(t *testing.T) {
	of := func(hash uint32, ip []byte) uint32 {
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: len(ip), Payload: buffer.MakeWithData([]byte("x"))})
		defer p.DecRef()
		copy(p.NetworkHeader().Push(len(ip)), ip)
		p.Hash = hash
		return flowOf(p)
	}
	packet := tcpPacket(a4, b4, 1, 0x04, "")
	if got := of(7, packet[:20]); got != 7 {
		t.Errorf("a connection of number 7 is flow %d", got)
	}
	same := bytes.Clone(packet[:20])
	same[4]++ // identification
	other := bytes.Clone(packet[:20])
	other[19]++ // destination
	if of(0, packet[:20]) != of(0, same) || of(0, packet[:20]) == of(0, other) {
		t.Error("flows are not told by their addresses")
	}
	six := make([]byte, 40)
	six2 := bytes.Clone(six)
	six2[39] = 1
	if of(0, six) == of(0, six2) {
		t.Error("flows of IPv6 are not told by their addresses")
	}
}

func TestInject(t *testing.T) {
	s := newStack(t, Options{}, a4)
	want := tcpPacket(a4, b4, 1, 0x04, "")
	s.Inject([][]byte{nil, make([]byte, 1281), want})
	bufs, sizes := [][]byte{make([]byte, 2000)}, make([]int, 1)
	if n, err := s.Read(bufs, sizes, 16); n != 1 || err != nil || !bytes.Equal(bufs[0][16:16+sizes[0]], want) {
		t.Errorf("read %d packets, %v: % x, want % x", n, err, bufs[0][16:16+sizes[0]], want)
	}
	s.Close()
	s.Inject([][]byte{want}) // goes nowhere
}

package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/pprof"

	"github.com/hedge-mesh/hedge/test/bench/kid"
)

// nodes is two nodes, of which the first dials the second.
type nodes interface {
	Dial(ctx context.Context, network string, port uint16) (net.Conn, error)
	Listen(port uint16) (net.Listener, error)
	ListenPacket(port uint16) (net.PacketConn, error)
	Close()
}

// Request is what the parent asks a world for.
type Request struct {
	Test    string `json:"test"`              // "open", "tcp", "udp", "rtt" or "mem"
	Streams int    `json:"streams,omitempty"` // bulk streams; beside the requests of "rtt"
	Back    bool   `json:"back,omitempty"`    // the listener sends
	Size    int    `json:"size,omitempty"`    // of the payload of "udp"
	MS      int    `json:"ms,omitempty"`      // milliseconds, after a quarter as long to warm up
	Place   *Place `json:"place,omitempty"`   // of "open"
}

// Place is which world to open, and what it needs for that.
type Place struct {
	Kind  string    `json:"kind"`
	Dir   string    `json:"dir,omitempty"`   // for the state of its nodes
	Joins [2]string `json:"joins,omitempty"` // of Hedge's nodes, good once
	Rules int       `json:"rules,omitempty"`
	Peers int       `json:"peers,omitempty"`
}

// Answer is what a world has measured, of both ends together.
type Answer struct {
	Gbit    float64 `json:"gbit,omitempty"`    // gigabits of payload a second
	Packets float64 `json:"packets,omitempty"` // that arrived a second
	Lost    float64 `json:"lost,omitempty"`    // percent
	CPU     float64 `json:"cpu,omitempty"`     // seconds for a gigabyte; of "udp", microseconds for a packet that arrived
	Allocs  float64 `json:"allocs,omitempty"`  // objects for a packet that was sent; of "tcp", for 1,240 bytes of payload
	P50     float64 `json:"p50,omitempty"`     // microseconds
	P99     float64 `json:"p99,omitempty"`
	RSS     float64 `json:"rss,omitempty"`  // megabytes, of the process
	Peak    float64 `json:"peak,omitempty"` // the most that it was, of "mem"
}

// opened is the place that is opened before the first request, if one is.
var opened *Place

// serveWorld is a kid's work: to open a world, and measure in it until there are no more requests.
func serveWorld(profile, allocs string) (err error) {
	if allocs != "" {
		runtime.MemProfileRate = 256
	}
	b := new(bench)
	defer b.close()
	if opened != nil {
		if err := b.open(*opened); err != nil {
			return err
		}
	}
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if allocs != "" {
		defer func() { err = errors.Join(err, writeAllocs(allocs)) }()
	}
	return kid.Serve(Answer{}, b.do)
}

func writeAllocs(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	runtime.GC() // the profile is that of the last collection
	return errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
}

func openNodes(p Place) (nodes, error) {
	switch p.Kind {
	case Hedge:
		return openHedge(p)
	case WireGuard:
		return openWireGuard()
	case Stacks:
		return openStacks()
	case alone:
		return openAlone(p)
	}
	return nil, fmt.Errorf("no world is called %q", p.Kind)
}

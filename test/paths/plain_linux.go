package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	plainPort  = 9
	plainEvery = 20 * time.Millisecond
	plainFor   = time.Second
	plainRound = 40 * time.Millisecond // what the wires are to take, there and back
)

// plain is how long a datagram and its answer take between the two servers, which are as far apart as two sites are, with
// nothing of Hedge in between: what is above plainRound, the lab and the machine add to every round trip.
//
//	relay ── number, 8 bytes ──▶ wire ─ internet ─ wire ──▶ coordinator ── the same ──▶ …      one every 20 ms
func plain(ctx context.Context, m *mesh) (took []time.Duration, err error) {
	var far, near *net.UDPConn
	at := &net.UDPAddr{IP: m.hub.Addr.AsSlice(), Port: plainPort}
	if err := m.hub.Do(func() (err error) { far, err = net.ListenUDP("udp4", at); return err }); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer far.Close()
	if err := m.extra.Do(func() (err error) { near, err = net.DialUDP("udp4", nil, at); return err }); err != nil {
		return nil, err
	}
	defer near.Close()
	wg.Go(func() {
		for b := make([]byte, 64); ; {
			n, from, err := far.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			far.WriteToUDPAddrPort(b[:n], from)
		}
	})
	began := time.Now()
	wg.Go(func() {
		for b := make([]byte, 64); ; {
			if n, err := near.Read(b); err != nil {
				return
			} else if n == 8 {
				took = append(took, time.Since(began)-time.Duration(binary.BigEndian.Uint64(b)))
			}
		}
	})
	for time.Since(began) < plainFor {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(time.Since(began)))
		near.Write(b[:])
		if err := pause(ctx, plainEvery); err != nil {
			return nil, err
		}
	}
	if err := pause(ctx, 2*plainRound); err != nil {
		return nil, err
	}
	near.Close()
	far.Close()
	wg.Wait()
	return took, nil
}

// plainly is what the report says of plain datagrams.
func plainly(results []result) string {
	var all []time.Duration
	for _, r := range results {
		all = append(all, r.Plain...)
	}
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	at := func(share float64) string {
		return fmt.Sprintf("%.1f", float64(all[int(share*float64(len(all)-1))].Microseconds())/1000)
	}
	return fmt.Sprintf(`
*The lab itself: a plain datagram and its answer between two edges, without Hedge and at the same time, are to take %d ms and took %s at
least, %s at the median, %s in 95 of 100 and %s at most, of %d. What is above %d comes to every round trip; a first echo by relay has four.*
`, plainRound.Milliseconds(), at(0), at(0.5), at(0.95), at(1), len(all), plainRound.Milliseconds())
}

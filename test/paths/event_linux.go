package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"
)

// event is something that happens while the nodes talk.
type event struct {
	name, text string
	do         func(ctx context.Context, c *run) error
	prepare    func(ctx context.Context, c *run) error // before anything is sent
	outage     time.Duration                           // goal: the longest time without an answer
	back       time.Duration                           // goal: from its end until the path is what it is to be again
	stall      time.Duration                           // goal: the longest time that TCP stands; 0 for what outage makes of it
	by         string                                  // the path before it, if one other than "direct" is hoped for
	after      string                                  // "direct", "relay" or "any"; "" for what it was
	only       string                                  // whose path that is: "a" or "b"; "" for both. Each end chooses its own
	lossless   bool                                    // goal: no datagram is lost
	breaks     bool                                    // TCP streams need not live on
	watch      time.Duration                           // how long to look at most; 0 for watched
	tailscale  map[string]string                       // the outage measured on it, by pair
}

const (
	announced = 150 * time.Millisecond // outage, when a node's own address changes
	silent    = time.Second            // outage, when only its NAT's does
	watched   = 6 * time.Second
)

var events = []event{
	{name: "lan", tailscale: map[string]string{"easy/easy": "4760-4900", "blocked/easy": "3080"}, text: "a's LAN address changes", outage: announced, back: time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.MoveLAN() }},
	{name: "lan-b", text: "b's LAN address changes", outage: announced, back: time.Second,
		do: func(_ context.Context, r *run) error { return r.m.b.MoveLAN() }},
	{name: "lan-both", text: "both LAN addresses change at once", outage: 2 * announced, back: time.Second,
		do: func(_ context.Context, r *run) error { return errors.Join(r.m.a.MoveLAN(), r.m.b.MoveLAN()) }},
	{name: "lan-3", text: "a's LAN address changes three times, 700 ms apart", outage: announced, back: time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.MoveLAN(), pause(ctx, 700*time.Millisecond), r.m.a.MoveLAN(), pause(ctx, 700*time.Millisecond), r.m.a.MoveLAN())
		}},
	{name: "uplink", tailscale: map[string]string{"easy/easy": "4750-4850"}, text: "a's link dies as another comes up", outage: announced, back: time.Second,
		do: func(_ context.Context, r *run) error {
			return errors.Join(r.m.a.NewUplink("easy", true), r.m.a.DropUplink())
		}},
	{name: "uplink-free", text: "a leaves the network that blocks UDP for another", outage: announced, back: 3 * time.Second, after: "direct",
		do: func(_ context.Context, r *run) error {
			return errors.Join(r.m.a.NewUplink("easy", true), r.m.a.DropUplink())
		}},
	{name: "uplink-hard", text: "a's link dies as another, behind a hard NAT, comes up", outage: announced, back: 4 * time.Second,
		do: func(_ context.Context, r *run) error {
			return errors.Join(r.m.a.NewUplink("hard", true), r.m.a.DropUplink())
		}},
	{name: "uplink-over", text: "a prefers another link, and loses the first 2 s later", outage: announced, back: time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.NewUplink("easy", true), pause(ctx, 2*time.Second), r.m.a.DropUplink())
		}},
	{name: "standby", text: "a's link dies while another stands by", outage: announced, back: time.Second,
		prepare: func(_ context.Context, r *run) error { return r.m.a.NewUplink("easy", false) },
		do:      func(_ context.Context, r *run) error { return r.m.a.DropUplink() }},
	{name: "bounce", tailscale: map[string]string{"easy/easy": "1020"}, text: "a's link is down for 1 s", outage: time.Second + silent, back: 2 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.Bounce(time.Second) }},
	{name: "wan", tailscale: map[string]string{"easy/easy": "4800-4820"}, text: "a's NAT gets another address, unseen by a", outage: silent, back: 2 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.MoveWAN() }},
	{name: "wan-b", text: "b's NAT gets another address, unseen by b", outage: silent, back: 2 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.b.MoveWAN() }},
	{name: "forget", text: "a's NAT forgets all mappings", outage: silent, back: 2 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.Forget() }},
	{name: "forget-both", text: "both NATs forget all mappings", outage: silent, back: 2 * time.Second,
		do: func(_ context.Context, r *run) error { return errors.Join(r.m.a.Forget(), r.m.b.Forget()) }},
	{name: "udp-off", text: "a's network blocks UDP from now on", outage: silent, back: 3 * time.Second, after: "relay",
		do: func(_ context.Context, r *run) error { return r.m.a.BlockUDP(true) }},
	{name: "udp-on", text: "a's network no longer blocks UDP", lossless: true, outage: announced, back: 30 * time.Second, after: "direct", watch: 35 * time.Second,
		prepare: func(_ context.Context, r *run) error { return r.m.a.BlockUDP(true) },
		do:      func(_ context.Context, r *run) error { return r.m.a.BlockUDP(false) }},
	{name: "tcp-dead", tailscale: map[string]string{"blocked/easy": "119800"}, text: "a's NAT forgets the TCP connections, and drops their packets without a word", outage: 2 * time.Second, back: 2 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.KillTCP() }},
	{name: "loss", text: "10 % loss between the sites; none to the relay", back: 5 * time.Second, after: "relay", watch: 8 * time.Second,
		do: func(_ context.Context, r *run) error {
			return r.m.world.Between(r.m.a.Site, r.m.b.Site, "numgen random mod 100 < 10 drop")
		}},
	{name: "loss-over", text: "10 % loss between the sites ends after 6 s", back: 10 * time.Second, after: "direct", watch: 25 * time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.world.Between(r.m.a.Site, r.m.b.Site, "numgen random mod 100 < 10 drop"), pause(ctx, 6*time.Second),
				r.m.world.Between(r.m.a.Site, r.m.b.Site))
		}},
	{name: "mtu", tailscale: map[string]string{"easy/easy": "for good"}, text: "packets over 1280 bytes vanish between the sites", outage: announced, back: 2 * time.Second, after: "any", stall: 2 * time.Second,
		do: func(_ context.Context, r *run) error {
			return r.m.world.Between(r.m.a.Site, r.m.b.Site, "meta length > 1280 drop")
		}},
	{name: "mtu-all", text: "packets over 1280 bytes vanish on all of a's uplink", outage: announced, back: 2 * time.Second, stall: 2 * time.Second,
		do: func(_ context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.MTU = 1280 })
			return nil
		}},
	{name: "direct-off", text: "the direct way loses everything", outage: silent, back: 3 * time.Second, after: "relay",
		do: func(_ context.Context, r *run) error { return r.m.world.Between(r.m.a.Site, r.m.b.Site, "drop") }},
	{name: "hub-dead", text: "the coordinator and its relay are killed", back: 3 * time.Second, outage: 2 * time.Second,
		do: func(_ context.Context, r *run) error { r.m.hubUp.stop(os.Kill); return nil }},
	{name: "hub-restart", text: "the coordinator and its relay are killed, and started 1 s later", outage: 3 * time.Second, back: 4 * time.Second, watch: 8 * time.Second,
		do: func(ctx context.Context, r *run) error {
			r.m.hubUp.stop(os.Kill)
			return errors.Join(pause(ctx, time.Second), r.m.startHub(ctx))
		}},
	{name: "relay-dead", text: "the other relay is killed", outage: 2 * time.Second, back: 3 * time.Second,
		do: func(_ context.Context, r *run) error { r.m.relay.stop(os.Kill); return nil }},
	{name: "sleep", text: "a sleeps for 5 s", outage: 5*time.Second + silent, back: 3 * time.Second, watch: 12 * time.Second,
		do: func(ctx context.Context, r *run) error {
			p := r.m.a.proc.cmd.Process
			return errors.Join(p.Signal(syscall.SIGSTOP), pause(ctx, 5*time.Second), p.Signal(syscall.SIGCONT))
		}},
	{name: "sleep-move", text: "a sleeps for 5 s and wakes with another LAN address", outage: 5*time.Second + silent, back: 3 * time.Second, watch: 12 * time.Second,
		do: func(ctx context.Context, r *run) error {
			p := r.m.a.proc.cmd.Process
			return errors.Join(p.Signal(syscall.SIGSTOP), pause(ctx, 5*time.Second), r.m.a.MoveLAN(), p.Signal(syscall.SIGCONT))
		}},
	{name: "restart-b", text: "node b is killed and started again", outage: 3 * time.Second, back: 5 * time.Second, breaks: true, watch: 10 * time.Second,
		do: func(_ context.Context, r *run) error { r.m.b.proc.stop(os.Kill); return r.m.b.start() }},
	{name: "rest", text: "nothing is said for 12 s, and NATs forget in 3", back: time.Second, outage: silent, watch: 5 * time.Second,
		prepare: func(_ context.Context, r *run) error { return errors.Join(r.m.a.Timeouts(3), r.m.b.Timeouts(3)) },
		do: func(ctx context.Context, r *run) error {
			r.stream.end()
			r.flow.rest(true)
			err := pause(ctx, 12*time.Second)
			r.flow.rest(false)
			r.began = time.Now()
			r.stream = nil
			return err
		}},
	{name: "jitter", text: "10 ms of jitter and 1 % loss begin on a's uplink", outage: silent, back: time.Second,
		do: func(_ context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.Jitter, l.Loss = 10*time.Millisecond, 0.01 })
			return nil
		}},
}

// allEvents are those of every section.
func allEvents() []event { return slices.Concat(events, more, journeys, ills, third) }

func eventNamed(name string) (event, error) {
	for _, e := range allEvents() {
		if e.name == name {
			return e, nil
		}
	}
	return event{}, fmt.Errorf("no event %q", name)
}

package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// more is what happens less often, or only to some. That a network has become better shows at the next round of STUN.
var more = []event{
	{name: "v6-prefix", text: "a's IPv6 prefix changes", outage: announced, back: time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.MovePrefix() }},
	{name: "v6-gone", text: "a's IPv6 goes away", outage: announced, back: time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.DropIPv6(false) }},
	{name: "v6-dead", text: "a's network drops all IPv6 without a word", outage: silent, back: 2 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.DropIPv6(true) }},
	{name: "route", text: "a's default route moves to another link, and back 2 s later", outage: announced, back: time.Second,
		prepare: func(_ context.Context, r *run) error { return r.m.a.NewUplink("easy", false) },
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.PreferUplink(true), pause(ctx, 2*time.Second), r.m.a.PreferUplink(false))
		}},
	{name: "vpn", text: "a VPN takes all of a's packets by more specific routes", outage: announced, back: time.Second,
		prepare: func(_ context.Context, r *run) error { return r.m.a.NewUplink("easy", false) },
		do:      func(_ context.Context, r *run) error { return r.m.a.Tunnel(true) }},
	{name: "vpn-over", text: "a VPN takes all of a's packets, and is gone 3 s later", outage: announced, back: time.Second,
		prepare: func(_ context.Context, r *run) error { return r.m.a.NewUplink("hard", false) },
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.Tunnel(true), pause(ctx, 3*time.Second), r.m.a.Tunnel(false))
		}},
	{name: "lan-late", text: "a's LAN address changes after 35 s on the direct path", outage: announced, back: time.Second,
		do: func(ctx context.Context, r *run) error {
			err := pause(ctx, 35*time.Second) // the UDP side of the relay sleeps
			r.began = time.Now()
			return errors.Join(err, r.m.a.MoveLAN())
		}},
	{name: "forget-5", text: "a's NAT forgets all mappings five times, 1.5 s apart", outage: silent, back: 2 * time.Second,
		do: func(ctx context.Context, r *run) error { return repeat(ctx, 5, 1500*time.Millisecond, r.m.a.Forget) }},
	{name: "wan-3", text: "a's NAT gets another address three times, 3 s apart", outage: silent, back: 2 * time.Second,
		do: func(ctx context.Context, r *run) error { return repeat(ctx, 3, 3*time.Second, r.m.a.MoveWAN) }},
	{name: "wan-both", text: "both NATs get other addresses at once", outage: silent, back: 2 * time.Second,
		do: func(_ context.Context, r *run) error { return errors.Join(r.m.a.MoveWAN(), r.m.b.MoveWAN()) }},
	{name: "wan-hard", text: "a's NAT is replaced by a hard one, at another address", outage: silent, back: 5 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.ChangeNAT("hard") }},
	{name: "wan-easy", text: "a's NAT is replaced by an easy one, at another address", outage: silent, back: 30 * time.Second, after: "direct", watch: 35 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.ChangeNAT("easy") }},
	{name: "swap", text: "the NATs of a and b swap their addresses", outage: silent, back: 2 * time.Second,
		do: func(_ context.Context, r *run) error { return lab.Swap(r.m.a.Site, r.m.b.Site) }},
	{name: "flap", text: "a's link is down for 400 ms, five times in 5 s", outage: 400*time.Millisecond + 2*silent, back: 2 * time.Second,
		do: func(ctx context.Context, r *run) error {
			return repeat(ctx, 5, 600*time.Millisecond, func() error { return r.m.a.Bounce(400 * time.Millisecond) })
		}},
	{name: "dark", text: "a's uplink loses everything for 3 s", outage: 3*time.Second + 2*silent, back: 3 * time.Second,
		do: func(ctx context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.Down = true })
			err := pause(ctx, 3*time.Second)
			r.m.a.Wire.Set(func(l *labLine) { l.Down = false })
			return err
		}},
	{name: "captive", text: "a's network lets nothing through for 4 s, and refuses TCP", outage: 4*time.Second + 2*time.Second, back: 4 * time.Second, watch: 12 * time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.Captive(true), pause(ctx, 4*time.Second), r.m.a.Captive(false))
		}},
	{name: "police", text: "a's network drops UDP above 150 packets a second", outage: silent, back: 5 * time.Second, after: "any", watch: 10 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.Police(150) }},
	{name: "loss-up", text: "10 % loss from a to b only; none to the relay", back: 5 * time.Second, after: "relay", only: "a", watch: 10 * time.Second,
		do: func(_ context.Context, r *run) error {
			return r.m.world.To(r.m.a.Site, r.m.b.Site, "numgen random mod 100 < 10 drop")
		}},
	{name: "loss-down", text: "10 % loss from b to a only; none to the relay", back: 5 * time.Second, after: "relay", only: "b", watch: 10 * time.Second,
		do: func(_ context.Context, r *run) error {
			return r.m.world.To(r.m.b.Site, r.m.a.Site, "numgen random mod 100 < 10 drop")
		}},
	{name: "up-off", text: "the direct way from a to b loses everything, the way back nothing", outage: silent, back: 3 * time.Second, after: "relay",
		do: func(_ context.Context, r *run) error { return r.m.world.To(r.m.a.Site, r.m.b.Site, "drop") }},
	{name: "down-off", text: "the direct way from b to a loses everything, the way there nothing", outage: silent, back: 3 * time.Second, after: "relay",
		do: func(_ context.Context, r *run) error { return r.m.world.To(r.m.b.Site, r.m.a.Site, "drop") }},
	{name: "late", text: "20 % of all packets on a's uplink are overtaken by others", outage: announced, back: time.Second,
		do: func(_ context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.Late = 0.2 })
			return nil
		}},
	{name: "copies", text: "10 % of all packets on a's uplink arrive twice", outage: announced, back: time.Second,
		do: func(_ context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.Dup = 0.1 })
			return nil
		}},
	{name: "slow", text: "a's uplink takes 100 ms instead of 10, each way", outage: 2 * announced, back: 3 * time.Second,
		do: func(_ context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.Delay = 100 * time.Millisecond })
			return nil
		}},
	{name: "slow-over", text: "a's uplink takes 100 ms instead of 10, each way, for 4 s", outage: 2 * announced, back: 3 * time.Second,
		do: func(ctx context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.Delay = 100 * time.Millisecond })
			err := pause(ctx, 4*time.Second)
			r.m.a.Wire.Set(func(l *labLine) { l.Delay = lab.Half })
			return err
		}},
	{name: "narrow", text: "a's uplink carries no more than 2 Mbit/s", outage: 2 * announced, back: 5 * time.Second, after: "any",
		do: func(_ context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.Rate = 2e6 })
			return nil
		}},
	{name: "mtu-told", text: "a's uplink carries 1300 bytes, and says so", outage: announced, back: 2 * time.Second, stall: 2 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.MTU(1300) }},
	{name: "hub-roam", text: "the coordinator and its relay are killed, and 2 s later both LAN addresses change", outage: silent, back: 4 * time.Second,
		do: func(ctx context.Context, r *run) error {
			r.m.hubUp.stop(os.Kill)
			return errors.Join(pause(ctx, 2*time.Second), r.m.a.MoveLAN(), r.m.b.MoveLAN())
		}},
	{name: "hub-wan", text: "the coordinator and its relay are killed, and 2 s later both NATs get other addresses", outage: silent, back: 4 * time.Second, watch: 12 * time.Second,
		do: func(ctx context.Context, r *run) error {
			r.m.hubUp.stop(os.Kill)
			return errors.Join(pause(ctx, 2*time.Second), r.m.a.MoveWAN(), r.m.b.MoveWAN())
		}},
	{name: "relay-moves", text: "the other relay and the coordinator are killed, and started 1 s later, the relay at another address", outage: 3 * time.Second, back: 4 * time.Second, watch: 12 * time.Second,
		do: func(ctx context.Context, r *run) error {
			r.m.hubUp.stop(os.Kill)
			r.m.relay.stop(os.Kill)
			return errors.Join(pause(ctx, time.Second), r.m.extra.Move(), r.m.startRelay(ctx), r.m.startHub(ctx))
		}},
	{name: "anew", text: "both nodes are restarted, and talk again when they are up", outage: silent, back: 5 * time.Second, watch: 8 * time.Second,
		do: func(ctx context.Context, r *run) error {
			r.stream.end()
			r.stream = nil
			r.flow.end() // it goes through a's proxy, which is gone
			r.m.a.proc.stop(os.Kill)
			r.m.b.proc.stop(os.Kill)
			if err := errors.Join(r.m.a.start(), r.m.b.start(), r.m.settle(ctx)); err != nil {
				return err
			}
			return r.talk(ctx)
		}},
	{name: "lease", text: "a's LAN address is taken away, and given back 300 ms later", outage: 300*time.Millisecond + announced, back: time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.LoseLAN(), pause(ctx, 300*time.Millisecond), r.m.a.RegainLAN())
		}},
	{name: "refused", text: "a's own system refuses to send UDP (EPERM) for 1 s", outage: silent, back: 2 * time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.RefuseUDP(true), pause(ctx, time.Second), r.m.a.RefuseUDP(false))
		}},
	{name: "lan-20", text: "one of a's 20 addresses changes, the one in use", outage: announced, back: time.Second,
		prepare: func(_ context.Context, r *run) error { return r.m.a.MoreAddresses(20) },
		do:      func(_ context.Context, r *run) error { return r.m.a.MoveLAN() }},
	{name: "rough", text: "10 % of all packets on a's uplink are overtaken, and 2 % lost", outage: silent, back: 2 * time.Second, after: "any",
		do: func(_ context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.Late, l.Loss = 0.1, 0.02 })
			return nil
		}},
	{name: "relays-dead", text: "both relays are killed", outage: announced, back: time.Second,
		do: func(_ context.Context, r *run) error { r.m.hubUp.stop(os.Kill); r.m.relay.stop(os.Kill); return nil }},
}

// repeat does it n times, with a pause after each.
func repeat(ctx context.Context, n int, d time.Duration, do func() error) error {
	for range n {
		if err := errors.Join(do(), pause(ctx, d)); err != nil {
			return err
		}
	}
	return nil
}

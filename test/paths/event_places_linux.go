package main

import (
	"context"
	"errors"
	"os"
	"time"
)

// journeys are what happens to those who go from network to network.
var journeys = []event{
	{name: "roam-4", text: "a goes to another network four times in 10 s, behind NATs easy, hard, easy and full cone", outage: 2 * announced, back: time.Second, after: "direct",
		do: func(ctx context.Context, r *run) error {
			for i, kind := range []string{"easy", "hard", "easy", "fullcone"} {
				if i > 0 {
					if err := pause(ctx, 2500*time.Millisecond); err != nil {
						return err
					}
				}
				if err := r.m.a.Roam(kind); err != nil {
					return err
				}
			}
			return nil
		}},
	{name: "roam-both", text: "both go to other networks at once", outage: 2 * announced, back: 2 * time.Second, after: "direct",
		do: func(_ context.Context, r *run) error { return errors.Join(r.m.a.Roam("easy"), r.m.b.Roam("easy")) }},
	{name: "visit", text: "a comes to b's LAN", outage: announced, back: time.Second, after: "direct 192.168.",
		do: func(_ context.Context, r *run) error { return r.m.a.Visit(r.m.b.Site) }},
	{name: "visit-over", text: "a comes to b's LAN, and goes home 4 s later", outage: announced, back: time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.Visit(r.m.b.Site), pause(ctx, 4*time.Second), r.m.a.Return())
		}},
	{name: "leave", text: "a leaves the LAN that both are on", outage: announced, back: time.Second, after: "direct 203.",
		do: func(_ context.Context, r *run) error { return r.m.a.Roam("easy") }},
	{name: "exchange", text: "a goes to b's network, and b to a's, at once", outage: 2 * announced, back: 2 * time.Second,
		do: func(_ context.Context, r *run) error {
			return errors.Join(r.m.a.Visit(r.m.b.Site), r.m.b.Visit(r.m.a.Site))
		}},
	{name: "restart-away", text: "node b is killed, and started again on another network", outage: 3 * time.Second, back: 5 * time.Second, breaks: true, watch: 10 * time.Second,
		do: func(_ context.Context, r *run) error {
			r.m.b.proc.stop(os.Kill)
			return errors.Join(r.m.b.Roam("easy"), r.m.b.start())
		}},
	{name: "flap-new", text: "a's link is down for 400 ms, five times in 5 s, and comes up with another address each time", outage: 400*time.Millisecond + 2*silent, back: 2 * time.Second,
		do: func(ctx context.Context, r *run) error {
			return repeat(ctx, 5, 600*time.Millisecond, func() error { return r.m.a.Rejoin(400 * time.Millisecond) })
		}},
	{name: "v6-renumber", text: "a's IPv6 prefix is deprecated, and gone 3 s later", outage: announced, back: time.Second,
		do: func(ctx context.Context, r *run) error {
			gone, err := r.m.a.Renumber()
			return errors.Join(err, pause(ctx, 3*time.Second), gone())
		}},
	{name: "families", text: "a loses IPv4, and 3 s later IPv6 as IPv4 comes back", outage: announced, back: time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.OnlyFamily(6), pause(ctx, 3*time.Second), r.m.a.OnlyFamily(4))
		}},
	{name: "udp4-off", text: "a's network blocks UDP of IPv4, not of IPv6", outage: silent, back: 3 * time.Second, after: "direct",
		do: func(_ context.Context, r *run) error { return r.m.a.BlockUDP4() }},
	{name: "reboot", text: "a's NAT is dark for 2 s, and comes back with another address and without its mappings", outage: 2*time.Second + 2*silent, back: 3 * time.Second,
		do: func(_ context.Context, r *run) error { return r.m.a.Reboot(2 * time.Second) }},
}

// ills are what lasts: networks that are slow, or let through less.
var ills = []event{
	{name: "detour", text: "the direct way takes 200 ms instead of 40", outage: 2 * announced, back: 5 * time.Second, after: "relay", watch: 10 * time.Second,
		do: func(_ context.Context, r *run) error {
			return r.m.world.Detour(r.m.a.Site, r.m.b.Site, 80*time.Millisecond)
		}},
	{name: "detour-over", text: "the direct way takes 200 ms instead of 40, for 8 s", outage: 2 * announced, back: 35 * time.Second, after: "direct", watch: 40 * time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.world.Detour(r.m.a.Site, r.m.b.Site, 80*time.Millisecond), pause(ctx, 8*time.Second),
				r.m.world.Detour(r.m.a.Site, r.m.b.Site, 0))
		}},
	{name: "lopsided", text: "a's uplink takes 100 ms instead of 10 out, and 10 in", outage: 2 * announced, back: 3 * time.Second,
		do: func(_ context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.Up = 90 * time.Millisecond })
			return nil
		}},
	{name: "far", text: "a's uplink takes 150 ms, each way, from the start; a's LAN address changes", outage: 700 * time.Millisecond, back: 4 * time.Second,
		prepare: func(_ context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.Delay = 150 * time.Millisecond })
			return nil
		},
		do: func(_ context.Context, r *run) error { return r.m.a.MoveLAN() }},
	{name: "udp-gap", text: "a's provider drops all UDP for 8 s", outage: silent, back: 30 * time.Second, watch: 35 * time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.BlockUDP(true), pause(ctx, 8*time.Second), r.m.a.BlockUDP(false))
		}},
	{name: "small", text: "UDP above 1000 bytes vanishes on a's uplink", outage: announced, back: 2 * time.Second, stall: 2 * time.Second, after: "any",
		do: func(_ context.Context, r *run) error {
			r.m.a.Wire.Set(func(l *labLine) { l.UDP = 1000 })
			return nil
		}},
	{name: "portal", text: "a is behind a captive portal for 6 s: HTTP is answered by it, all else is refused", outage: 8 * time.Second, back: 4 * time.Second, watch: 12 * time.Second,
		do: func(ctx context.Context, r *run) error {
			return errors.Join(r.m.a.Portal(true), pause(ctx, 6*time.Second), r.m.a.Portal(false))
		}},
	{name: "quiet-5", text: "one datagram in 5 s for 21 s, and NATs forget in 3", lossless: true, back: time.Second, prepare: forgetful, do: quiet(5*time.Second, 21*time.Second)},
	{name: "quiet-10", text: "one datagram in 10 s for 31 s, and NATs forget in 3", lossless: true, back: time.Second, prepare: forgetful, do: quiet(10*time.Second, 31*time.Second)},
	{name: "quiet-20", text: "one datagram in 20 s for 41 s, and NATs forget in 3", lossless: true, back: time.Second, prepare: forgetful, do: quiet(20*time.Second, 41*time.Second)},
}

func forgetful(_ context.Context, r *run) error {
	return errors.Join(r.m.a.Timeouts(3), r.m.b.Timeouts(3))
}

// quiet lets the flow send one datagram in a while, and no more is said.
func quiet(each, all time.Duration) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		r.stream.end()
		r.stream = nil
		r.flow.pace(each)
		err := pause(ctx, all)
		r.flow.pace(every)
		return err
	}
}

// unlike are the pairs that journeys and ills are tried on, beside moreCases.
var unlike = pairs(map[string][]string{
	"roam-4":       {"easy easy", "none fullcone", "blocked easy"},
	"roam-both":    {"easy easy", "home home", "easyopen easyopen"},
	"visit":        {"easy easy", "hard easy", "blocked easy"},
	"visit-over":   {"easy easy", "easyopen easy"},
	"leave":        {"home home"},
	"exchange":     {"easy easy", "easy easyopen"},
	"restart-away": {"easy easy", "hard easy"},
	"flap-new":     {"easy easy", "blocked easy"},
	"v6-renumber":  {"dual dual", "v6 v6"},
	"families":     {"dual dual"},
	"udp4-off":     {"dual dual"},
	"reboot":       {"easy easy", "hard fullcone", "blocked easy", "cgn easy", "easyopen easyopen"},
	"detour":       {"easy easy", "none easy"},
	"detour-over":  {"easy easy"},
	"lopsided":     {"easy easy", "hard hard"},
	"far":          {"easy easy", "hard hard", "blocked easy"},
	"udp-gap":      {"easy easy", "hard fullcone"},
	"small":        {"easy easy", "hard hard", "none easy"},
	"portal":       {"easy easy", "blocked easy"},
	"quiet-5":      {"easy easy", "hard fullcone", "easyopen easyopen", "firewall easy"},
	"quiet-10":     {"easy easy"},
	"quiet-20":     {"easy easy", "hard hard", "easyopen easy"},
	"wan":          {"ecmp easy", "cgn3 easy", "docker docker"},
	"lan":          {"ecmp easy", "cgn3 easy", "docker docker", "strict strict", "home home", "twin twin", "isolhp isolhp", "brief brief", "small easy"},
	"forget":       {"strict strict", "docker docker"},
	"loss":         {"strict strict"},
})

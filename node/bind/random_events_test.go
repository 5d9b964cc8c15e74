package bind

import (
	"slices"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// happen lets an event happen; what ends by itself does so later.
func (w *world) happen(h happening) {
	w.mu.Lock()
	w.log = append(w.log, "-- "+h.String())
	w.mu.Unlock()
	switch h.what {
	case "relay down":
		x := w.hubs[h.pick%2]
		x.set(true)
		w.net.After(h.last, func() { x.set(false) })
		w.until(h.last)
		return
	case "pause":
		<-time.After(h.last)
		return
	}
	for i, e := range w.ends {
		if h.end == i || h.end == 2 {
			e.happen(h)
		}
	}
	switch h.what {
	case "sleep":
		<-time.After(h.last)
		for i, e := range w.ends {
			if h.end == i || h.end == 2 {
				e.awake(h)
			}
		}
	}
}

// until keeps the end of the last event.
func (w *world) until(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = max(w.over, time.Since(w.start)+d)
}

// busy is when the last event is over.
func (w *world) busy() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.over
}

func (e *end) happen(h happening) {
	w := e.w
	w.until(h.last)
	last := len(e.routers) - 1
	switch h.what {
	case "new address":
		e.host.Readdress()
		e.links()
		e.elsewhere()
	case "other place":
		e.settle(h.to, false, false)
		e.elsewhere()
	case "NAT moves":
		if last >= 0 && !e.ground.routers[0].Routed {
			e.routers[0].Rebind()
			e.broken()
		}
	case "forgets":
		if last >= 0 {
			e.routers[h.pick%(last+1)].Forget()
		}
	case "other NAT":
		if last >= 0 {
			e.replace(h.pick%(last+1), h.to.routers[0])
		}
	case "dark", "sleep":
		e.darken(h.last)
	case "nothing goes out", "nothing comes in":
		e.mute(h)
	case "loss":
		up, down := e.ground.up.Loss, e.ground.down.Loss
		e.change(h, func() { e.ground.up.Loss, e.ground.down.Loss = h.part, h.part*float64(h.pick%3)/2 }, func() { e.ground.up.Loss, e.ground.down.Loss = up, down })
	case "no UDP":
		if last >= 0 {
			e.block(true)
			if h.last > 0 {
				was := e.routers[0]
				w.net.After(h.last, func() {
					if len(e.routers) > 0 && e.routers[0] == was {
						e.block(false)
					}
				})
			}
		}
	case "latency":
		e.change(h, func() { e.ground.up.Latency = time.Duration(h.part) }, nil)
	case "narrow":
		e.change(h, func() { e.ground.up.MTU, e.ground.down.MTU = 1300, 1300 }, nil)
	case "restart":
		old := e.side
		old.stop()
		<-time.After(time.Duration(50+h.pick) * time.Millisecond)
		e.begin(old, nil)
		w.tell()
	case "IPv6 comes or goes":
		e.host.IPv6(!e.six())
		e.moves <- struct{}{}
	case "wall clock":
		jump := time.Duration(h.pick-50) * time.Hour
		e.wall.Store(&jump)
	}
}

// elsewhere is what the system says of a new address, and what it does to connections.
func (e *end) elsewhere() {
	e.broken()
	e.moves <- struct{}{}
}

// broken lets the connections to relays be of an address that is no more: it takes a while to notice, if nobody says so.
func (e *end) broken() {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	d := 200 * time.Millisecond
	if slices.ContainsFunc(e.ground.routers, func(r lab.RouterConfig) bool { return r.BlockUDP }) {
		d = 1300 * time.Millisecond
	}
	e.hold = time.Now().Add(d)
}

func (e *end) change(h happening, do, undo func()) {
	set := func(f func()) {
		e.w.mu.Lock()
		f()
		e.w.mu.Unlock()
		e.links()
	}
	set(do)
	if h.last > 0 && undo != nil {
		e.w.net.After(h.last, func() { set(undo) })
	}
}

// darken lets nothing pass for a while.
func (e *end) darken(d time.Duration) {
	e.w.mu.Lock()
	e.dark = time.Now().Add(d)
	e.lost(d)
	e.w.mu.Unlock()
	dead := lab.Link{Latency: time.Millisecond, Loss: 1}
	e.host.Links(dead, dead)
	e.w.net.After(d, e.links)
}

// mute lets UDP pass one way only; streams, which need both, get through by other means.
func (e *end) mute(h happening) {
	up, down := e.ground.up, e.ground.down
	if h.what == "nothing goes out" {
		up.Loss = 1
	} else {
		down.Loss = 1
	}
	e.host.Links(up, down)
	e.w.net.After(h.last, e.links)
}

func (e *end) block(on bool) {
	e.w.mu.Lock()
	e.ground.routers[0].BlockUDP = on
	e.w.mu.Unlock()
	e.routers[0].BlockUDP(on)
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	for _, o := range e.w.ends {
		if o != e && len(o.routers) > 0 && o.routers[0] == e.routers[0] {
			o.ground.routers[0].BlockUDP = on
		}
	}
}

// replace makes a router another.
func (e *end) replace(i int, cfg lab.RouterConfig) {
	old := e.ground.routers[i]
	if old.Routed {
		return
	}
	cfg.IPv6, cfg.NoIPv4, cfg.CGN, cfg.NAT.Pool, cfg.BlockUDP = old.IPv6, old.NoIPv4, old.CGN, old.NAT.Pool, old.BlockUDP
	e.routers[i].Replace(cfg)
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	for _, o := range e.w.ends {
		if len(o.routers) > i && o.routers[i] == e.routers[i] {
			o.ground.routers[i] = cfg
		}
	}
}

// awake lets the wall clock say how long the machine has slept, in which its NATs have forgotten it.
func (e *end) awake(h happening) {
	for _, r := range e.routers {
		r.Forget()
	}
	d := h.last
	if old := e.wall.Load(); old != nil {
		d += *old
	}
	e.wall.Store(&d)
	e.moves <- struct{}{}
}

package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/hedge-mesh/hedge/node"
)

// whyPath says why a peer is reached as it is.
func (a *app) whyPath(ctx context.Context, name string) error {
	r, err := ask(ctx, a, localTimeout, func(ctx context.Context, c *node.LocalClient) (node.PathReport, error) { return c.PathTo(ctx, name) })
	if err != nil {
		return err
	}
	return a.print(r, func(w io.Writer) { showPath(w, r, time.Now()) })
}

func showPath(w io.Writer, r node.PathReport, now time.Time) {
	fmt.Fprintf(w, "%s (%s): %s\n", r.Peer, r.Addr, r.Path)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-9s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("why", "%s; since %s", r.Why, ago(r.Path.Since, now))
	switch {
	case r.Doubt:
		row("doubt", "it does not answer just now: packets go by relay too")
	case r.Guessing:
		row("search", "ports of a NAT are being guessed")
	case r.GuessAgain.After(now):
		row("search", "ports of a NAT were guessed in vain, %s; again %s, if packets are sent", ago(r.Guessed, now), ago(r.GuessAgain, now))
	case !r.Guessed.IsZero():
		row("search", "ports of a NAT were guessed in vain, %s; again as soon as packets are sent", ago(r.Guessed, now))
	case r.NoGuess != "":
		row("search", "no ports are guessed: %s", r.NoGuess)
	case r.NoFresh != "":
		row("search", "no fresh socket is tried: %s", r.NoFresh)
	}
	row("this nat", "%s", r.NAT.Text)
	row("its nat", "%s", r.PeerNAT.Text)
	row("by relay", "%s", quality(r.RelayRTT, r.RelayJit, r.RelayLoss))
	if r.Path.MTU > 0 {
		row("carries", "packets of %d bytes", r.Path.MTU)
	}
	row("heard", "%s", ago(r.Path.Heard, now))
	if len(r.Candidates) == 0 {
		fmt.Fprintln(w, "\nNo addresses: nobody has told where the peer is, so the relay is the only way.")
		return
	}
	rows := [][]string{{"CANDIDATE", "FROM", "RESULT", "RTT", "MTU", "TRIED"}}
	for _, c := range r.Candidates {
		mtu := "-"
		if c.MTU > 0 {
			mtu = strconv.Itoa(c.MTU)
		}
		at := c.Addr
		if c.Via != "" {
			at = "peer relay " + c.Via
		}
		rows = append(rows, []string{at, strings.Join(c.From, ","), showResult(c), quality(c.RTT, c.Jitter, c.Loss), mtu, ago(c.Pinged, now)})
	}
	fmt.Fprintln(w)
	table(w, rows...)
}

// quality is the latency of a path, how much it varies, and its loss.
func quality(rtt, jitter node.Seconds, loss int) string {
	out := short(time.Duration(rtt))
	if jitter > 0 {
		out += " ±" + short(time.Duration(jitter))
	}
	if loss > 0 {
		out += fmt.Sprintf(", %.1f%% lost", float64(loss)/10)
	}
	return out
}

// showResult is what became of an address, in words.
func showResult(c node.PathCandidate) string {
	switch c.Result {
	case "in use":
		return "in use"
	case "answered":
		return "answers too"
	case "stopped":
		return "answered once, and no more"
	case "worse":
		return "left, until it is good again"
	case "silent":
		return "no answer"
	case "asked":
		return "asked; this node and the peer must both reach it directly"
	case "refused":
		return "refused: " + c.Refuse
	case "opened":
		return "our side is open; waiting for the peer's"
	}
	return "not tried: nothing was sent to the peer"
}

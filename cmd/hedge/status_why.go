package main

import (
	"context"
	"fmt"
	"io"
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
		row("search", "ports of a NAT are being tried")
	}
	row("this nat", "%s", r.NAT.Text)
	row("its nat", "%s", r.PeerNAT.Text)
	row("by relay", "%s", short(time.Duration(r.RelayRTT)))
	row("heard", "%s", ago(r.Path.Heard, now))
	if len(r.Candidates) == 0 {
		fmt.Fprintln(w, "\nNo addresses: nobody has told where the peer is, so the relay is the only way.")
		return
	}
	rows := [][]string{{"CANDIDATE", "FROM", "RESULT", "RTT", "TRIED"}}
	for _, c := range r.Candidates {
		rows = append(rows, []string{c.Addr, strings.Join(c.From, ","), showResult(c), short(time.Duration(c.RTT)), ago(c.Pinged, now)})
	}
	fmt.Fprintln(w)
	table(w, rows...)
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
	case "lossy":
		return fmt.Sprintf("left: it lost %d of 1000 packets", c.Loss)
	case "silent":
		return "no answer"
	case "opened":
		return "our side is open; waiting for the peer's"
	}
	return "not tried: nothing was sent to the peer"
}

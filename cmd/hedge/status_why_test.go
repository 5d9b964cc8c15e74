package main

import (
	"strings"
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/node"
)

// What is tried for a direct path, or why it is not, is one line: that which says most.
func TestShowSearch(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	ago := now.Add(-10 * time.Second)
	for _, c := range []struct {
		want string // none if empty
		r    node.PathReport
	}{
		{"", node.PathReport{}},
		{"ports of a NAT are being guessed", node.PathReport{Guessing: true}},
		{"guessed in vain, 10s ago; again in 10s, if", node.PathReport{Guessed: ago, GuessAgain: now.Add(10 * time.Second), NoGuess: "nobody"}},
		{"guessed in vain, 10s ago; again as soon", node.PathReport{Guessed: ago, GuessAgain: now, NoGuess: "nobody"}},
		{"no ports are guessed: guessing is switched off", node.PathReport{NoGuess: "guessing is switched off"}},
		{"no fresh socket is tried: the peer is silent", node.PathReport{NoFresh: "the peer is silent"}},
	} {
		var b strings.Builder
		showPath(&b, c.r, now)
		_, line, has := strings.Cut(b.String(), "\n  search    ")
		line, _, _ = strings.Cut(line, "\n")
		if has != (c.want != "") || !strings.Contains(line, c.want) {
			t.Errorf("%q, want %q", line, c.want)
		}
	}
}

package path

import (
	"regexp"
	"strings"
	"testing"
)

// A node that has just started knows from its disk where the peer was, which may have started anew too: sockets are opened for
// where the peer says that it is, not before, and not for where it was.
func TestGuessOfTheLivingOnly(t *testing.T) {
	const was, is = "192.0.2.2:1", "192.0.2.2:2"
	for _, kind := range []string{"random 0-0", "block 20000-21023", "sequential 30000-1"} {
		out := newScript(t).run("0 self 198.51.100.1:7000\n0 nat " + kind + "\n0 openers\n0 peers b=" + was + "\n0 flow b\n400 here b 10.0.0.2:1\n800 here b " + is + "\n6000 run\n")
		before, after, _ := strings.Cut(out, "800 here b")
		bySocket := regexp.MustCompile(`(?m)(open|ping) b (\S+) by socket`)
		if m := bySocket.FindString(before); m != "" {
			t.Errorf("%s: before the peer has said where it is: %s", kind, m)
		}
		tried := bySocket.FindAllStringSubmatch(after, -1)
		if len(tried) < someSocks {
			t.Errorf("%s: %d packets by sockets of their own", kind, len(tried))
		}
		for _, m := range tried {
			if m[2] != is {
				t.Fatalf("%s: %s, where the peer is at %s", kind, m[0], is)
			}
		}
	}
}

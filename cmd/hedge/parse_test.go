package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/hedge-mesh/hedge/node"
	"github.com/hedge-mesh/hedge/node/key"
)

func TestDirs(t *testing.T) {
	env := func(kv ...string) func(string) string {
		return func(name string) string {
			for i := 0; i < len(kv); i += 2 {
				if kv[i] == name {
					return kv[i+1]
				}
			}
			return ""
		}
	}
	for _, c := range []struct {
		name     string
		stateDir string
		root     bool
		env      func(string) string
		want     dirs
	}{
		{"root", "", true, env("HOME", "/root"), dirs{"/var/lib/hedge", "/run/hedge", "/etc/hedge/acl.hujson"}},
		{"a user", "", false, env("HOME", "/home/a"), dirs{"/home/a/.local/state/hedge", "/home/a/.local/state/hedge/run", "/home/a/.config/hedge/acl.hujson"}},
		{"with XDG", "", false, env("HOME", "/home/a", "XDG_STATE_HOME", "/s", "XDG_RUNTIME_DIR", "/r", "XDG_CONFIG_HOME", "/c"),
			dirs{"/s/hedge", "/r/hedge", "/c/hedge/acl.hujson"}},
		{"a relative XDG folder is ignored", "", false, env("HOME", "/home/a", "XDG_STATE_HOME", "s"),
			dirs{"/home/a/.local/state/hedge", "/home/a/.local/state/hedge/run", "/home/a/.config/hedge/acl.hujson"}},
		{"--state-dir holds everything, for root too", "/x", true, env(), dirs{"/x", "/x/run", "/x/acl.hujson"}},
		{"no home", "", false, env(), dirs{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := findDirs(c.stateDir, c.root, c.env)
			if (err != nil) != (c.want == dirs{}) {
				t.Fatal(err)
			}
			for _, p := range []*string{&got.state, &got.run, &got.acl} {
				*p = filepath.ToSlash(*p)
			}
			if got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestParseWhy(t *testing.T) {
	for _, c := range []struct {
		args string
		want node.WhyQuery // zero: refused
	}{
		{"web:80", node.WhyQuery{Dst: "web", Port: 80, Proto: 6}},
		{"web:53/udp", node.WhyQuery{Dst: "web", Port: 53, Proto: 17}},
		{"web:53/UDP", node.WhyQuery{Dst: "web", Port: 53, Proto: 17}},
		{"web:9/132", node.WhyQuery{Dst: "web", Port: 9, Proto: 132}},
		{"alice web:22", node.WhyQuery{Src: "alice", Dst: "web", Port: 22, Proto: 6}},
		{"web/icmp", node.WhyQuery{Dst: "web", Proto: 1}},
		{"fd68::1/icmpv6", node.WhyQuery{Dst: "fd68::1", Proto: 58}},
		{"[fd68::1]:80", node.WhyQuery{Dst: "fd68::1", Port: 80, Proto: 6}},
		{"100.64.0.1:80", node.WhyQuery{Dst: "100.64.0.1", Port: 80, Proto: 6}},
		{"web", node.WhyQuery{}}, {"web:0", node.WhyQuery{}}, {"web:65536", node.WhyQuery{}}, {"web:http", node.WhyQuery{}},
		{":80", node.WhyQuery{}}, {"web:80/tpc", node.WhyQuery{}}, {"fd68::1", node.WhyQuery{}},
	} {
		q, err := parseWhy(strings.Fields(c.args))
		if (err != nil) != (c.want == node.WhyQuery{}) {
			t.Errorf("%s: %v", c.args, err)
		} else if err == nil && q != c.want {
			t.Errorf("%s: got %+v, want %+v", c.args, q, c.want)
		}
	}
}

func TestParseRelays(t *testing.T) {
	k, other := key.PublicOf(key.NewRelay()), key.PublicOf(key.NewRelay())
	one, err := parseRelays([]string{"https://relay.example.com#" + k.String()})
	if err != nil || len(one) != 1 || one[0].Key != k || one[0].ID <= embeddedRelay || !slices.Equal(one[0].STUN, []string{"relay.example.com:443"}) {
		t.Errorf("%+v, %v", one, err)
	}
	// As a flag and a variable give it: split at the commas.
	line := "https://192.0.2.1:7443,https://[2001:db8::1]:7443#" + k.String()
	many, err := parseRelays(append(strings.Split(line, ","), "https://other.example.com:7443#"+other.String()))
	if err != nil || len(many) != 2 || many[0].ID != one[0].ID || many[1].Key != other ||
		!slices.Equal(many[0].URLs, []string{"https://192.0.2.1:7443", "https://[2001:db8::1]:7443"}) ||
		!slices.Equal(many[0].STUN, []string{"192.0.2.1:7443", "[2001:db8::1]:7443"}) {
		t.Errorf("%+v, %v", many, err)
	}
	for _, bad := range []string{"", "https://relay.example.com", "relay.example.com#" + k.String(), "https://r#" + strings.Replace(k.String(), "relay", "control", 1),
		"https://r#" + k.String() + ",https://r", "r,https://r#" + k.String()} {
		if r, err := parseRelays(strings.Split(bad, ",")); err == nil {
			t.Errorf("%q was taken for %+v", bad, r)
		}
	}
}

// A twin sets what the command line has not, says which variable is wrong, and is nothing when empty.
func TestFromEnv(t *testing.T) {
	env := map[string]string{"HEDGE_STATE_DIR": "/x", "HEDGE_COUNT": "7", "HEDGE_EMPTY": ""}
	lookup := func(k string) (string, bool) { v, ok := env[k]; return v, ok }
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	dir, count, empty := fs.String("state-dir", "", ""), fs.Int("count", 1, ""), fs.String("empty", "kept", "")
	if err := fs.Parse([]string{"--count", "3"}); err != nil {
		t.Fatal(err)
	}
	if err := fromEnv(fs, lookup); err != nil || *dir != "/x" || *count != 3 || *empty != "kept" {
		t.Errorf("%q %d %q, %v", *dir, *count, *empty, err)
	}
	fs = pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.Int("count", 1, "")
	env["HEDGE_COUNT"] = "many"
	if err := fromEnv(fs, lookup); err == nil || !strings.Contains(err.Error(), "HEDGE_COUNT") {
		t.Errorf("a bad twin: %v", err)
	}
}

func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "-", 420 * time.Microsecond: "0.42 ms", 12340 * time.Microsecond: "12.3 ms",
		250 * time.Millisecond: "250 ms", 1500 * time.Millisecond: "1.5 s", 90 * time.Second: "1m", 49 * time.Hour: "2d"} {
		if got := short(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

// A QR code is drawn in full lines of half blocks with a light border on every side.
func TestQR(t *testing.T) {
	var b bytes.Buffer
	if err := showQR(&b, "hedge1-"+strings.Repeat("a", 120)); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	width := len([]rune(lines[0]))
	if width < 25 || lines[0] != strings.Repeat("█", width) {
		t.Errorf("no border: %q", lines[0])
	}
	for _, l := range lines {
		if r := []rune(l); len(r) != width || r[0] == ' ' || r[width-1] == ' ' {
			t.Errorf("an uneven line: %q", l)
		}
	}
}

func TestOwnURLs(t *testing.T) {
	for addr, want := range map[string]string{"127.0.0.1:7443": "https://127.0.0.1:7443", "[fd00::1]:7443": "https://[fd00::1]:7443"} {
		if got := ownURLs("https", addrPort(addr)); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	all := ownURLs("https", addrPort("[::]:7443"))
	if len(all) == 0 || len(all) > maxURLs || strings.Contains(all[0], "[::]") {
		t.Errorf("all addresses: %v", all)
	}
}

type addrPort string

func (a addrPort) Network() string { return "tcp" }
func (a addrPort) String() string  { return netip.MustParseAddrPort(string(a)).String() }

// A file of flags that holds nothing is that: it is added to as one that is not there.
func TestRecallNothing(t *testing.T) {
	d := dirs{state: t.TempDir()}
	for _, text := range []string{"null", "{}"} {
		if err := os.WriteFile(d.flags(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := recall(d)
		if err != nil {
			t.Fatal(err)
		}
		r["exit-node"] = "x"
	}
}

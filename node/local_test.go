package node

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hedge-mesh/hedge/acl"
	"github.com/hedge-mesh/hedge/node/hatch"
)

// Every route of the local API has an authorisation, and none lets in a stranger: another user, or one whom the
// kernel does not name.
func TestLocalRoutesAreAuthorised(t *testing.T) {
	const self = 1000
	want := "GET /status, GET /watch, POST /ping, POST /why, POST /set, POST /path, GET /netcheck, POST /ip, POST /down, POST /logout"
	var have []string
	reached := false
	table := make([]route, len(routes))
	for i, rt := range routes {
		have = append(have, rt.method+" "+rt.path)
		if rt.may == nil {
			t.Errorf("%s %s has no authorisation", rt.method, rt.path)
		}
		rt.serve = func(_ *Node, w http.ResponseWriter, _ *http.Request) error { reached = true; return nil }
		table[i] = rt
	}
	if got := strings.Join(have, ", "); got != want {
		t.Errorf("routes are %s\nwant %s\na new one needs an authorisation and a place in this test", got, want)
	}
	h := handler(&Node{}, append(table, route{http.MethodGet, "/forgotten", nil, table[0].serve}), self)
	for _, rt := range append(table, route{method: http.MethodGet, path: "/forgotten"}) {
		for _, c := range []struct {
			name string
			who  any
			ok   bool
		}{
			{"the same user", caller{uid: self}, true},
			{"root", caller{uid: 0}, true},
			{"another user", caller{uid: 1001}, false},
			{"nobody knows", caller{uid: self, err: errors.New("no")}, false},
			{"root, but not known", caller{uid: 0, err: errors.New("no")}, false},
			{"no credentials", nil, false},
		} {
			reached = false
			r := httptest.NewRequest(rt.method, "http://"+localHost+rt.path, nil)
			r.Header.Set("Content-Type", "application/json")
			if c.who != nil {
				r = r.WithContext(context.WithValue(r.Context(), callerKey{}, c.who))
			}
			h.ServeHTTP(httptest.NewRecorder(), r)
			if want := c.ok && rt.path != "/forgotten"; reached != want {
				t.Errorf("%s %s by %s: let in %v, want %v", rt.method, rt.path, c.name, reached, want)
			}
		}
	}
}

// A browser that was led here by a name rebound to this machine is not served (CVE-2022-41924, CVE-2022-41925).
func TestLocalRefusesBrowsers(t *testing.T) {
	reached := false
	h := handler(&Node{}, []route{{http.MethodPost, "/down", owner, func(*Node, http.ResponseWriter, *http.Request) error { reached = true; return nil }}}, 0)
	for _, c := range []struct {
		name string
		edit func(r *http.Request)
		ok   bool
	}{
		{"our client", func(*http.Request) {}, true},
		{"another host", func(r *http.Request) { r.Host = "evil.example" }, false},
		{"an address", func(r *http.Request) { r.Host = "127.0.0.1" }, false},
		{"our name with a port", func(r *http.Request) { r.Host = localHost + ":80" }, false},
		{"no host", func(r *http.Request) { r.Host = "" }, false},
		{"a page's script", func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, false},
		{"a page", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, false},
		{"a form", func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, false},
		{"the wrong method", func(r *http.Request) { r.Method = http.MethodGet }, false},
	} {
		reached = false
		r := httptest.NewRequest(http.MethodPost, "http://"+localHost+"/down", strings.NewReader("{}"))
		r.Header.Set("Content-Type", "application/json")
		r = r.WithContext(context.WithValue(r.Context(), callerKey{}, caller{uid: 0}))
		c.edit(r)
		h.ServeHTTP(httptest.NewRecorder(), r)
		if reached != c.ok {
			t.Errorf("%s: let in %v, want %v", c.name, reached, c.ok)
		}
	}
}

// socketDir is a directory whose sockets' paths are short enough (108 bytes).
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hedge")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// The typed errors of a node are the same on the other side of its socket.
func TestLocalErrorsCross(t *testing.T) {
	at := filepath.Join(socketDir(t), "sub", "sock")
	l, err := hatch.Listen(at)
	if err != nil {
		t.Fatal(err)
	}
	rule := &acl.Rule{Path: "acls[3]", Pos: acl.Pos{File: "acl.hujson", Line: 12, Col: 5}}
	send := map[string]error{
		"denied":  &DeniedError{Dst: "db:5432", Why: WhyResult{Text: "denied: no rule", Rule: rule}},
		"unknown": &UnknownNameError{Name: "wbe", Near: "web"},
		"silent":  &UnreachableError{Dst: "db", Err: errors.New("no answer")},
		"other":   errors.New("something"),
	}
	self := os.Getuid()
	srv := &http.Server{
		Handler: handler(&Node{}, []route{{http.MethodPost, "/ping", owner, func(_ *Node, _ http.ResponseWriter, r *http.Request) error {
			var q nameRequest
			if err := body(r, &q); err != nil {
				return err
			}
			return send[q.Name]
		}}}, self),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := hatch.User(c)
			return context.WithValue(ctx, callerKey{}, caller{uid, err})
		},
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()
	c := NewLocalClient(at)
	for name, want := range send {
		_, err := c.Ping(t.Context(), name)
		if err == nil || err.Error() != want.Error() {
			t.Errorf("%s: got %v, want %v", name, err, want)
			continue
		}
		code := exitFailed
		if w, ok := want.(interface{ ExitCode() int }); ok {
			code = w.ExitCode()
		}
		if got := err.(interface{ ExitCode() int }).ExitCode(); got != code {
			t.Errorf("%s: exit code %d, want %d", name, got, code)
		}
	}
	var denied *DeniedError
	if _, err := c.Ping(t.Context(), "denied"); !errors.As(err, &denied) || denied.Why.Rule.Pos != rule.Pos {
		t.Errorf("the denial lost its rule: %#v", err)
	}
	var none *NotRunningError
	if _, err := NewLocalClient(at + "x").Status(t.Context()); !errors.As(err, &none) {
		t.Errorf("nobody there: %v, want a NotRunningError", err)
	}
}

func TestSecondsInJSON(t *testing.T) {
	b, err := json.Marshal(PingResult{RTT: Seconds(1500 * 1000)})
	if err != nil || !strings.Contains(string(b), `"rtt_seconds":0.0015`) {
		t.Errorf("%s %v", b, err)
	}
	var r PingResult
	if err := json.Unmarshal(b, &r); err != nil || r.RTT != 1500*1000 {
		t.Errorf("%v %v", r.RTT, err)
	}
}

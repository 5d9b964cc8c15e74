package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// A person saves the policy while the demo runs: the cells that changed are marked, a broken edit is told and changes
// nothing, and Ctrl-C leaves no goroutine and no folder behind.
func TestDemoFollowsTheFile(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Setenv("TMPDIR", t.TempDir())
	file := t.TempDir() + "/acl.hujson"
	write := func(old, new string) {
		t.Helper()
		src := bytes.Replace(demoPolicy, []byte(old), []byte(new), 1)
		if err := os.WriteFile(file, src, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("", "")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, w := io.Pipe()
	var stderr bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		a := &app{stdin: strings.NewReader(""), stdout: w, stderr: &stderr}
		ended <- a.run(ctx, []string{"demo", "--json", "--acl", file})
		w.Close()
	}()
	out := json.NewDecoder(r)

	result := func(m matrix, from, to string, port uint16) cell {
		t.Helper()
		for _, c := range m.Cells {
			if c.From == from && c.To == to && c.Port == port {
				return c
			}
		}
		t.Fatalf("no cell %s to %s:%d in %+v", from, to, port, m)
		return cell{}
	}
	next := func() (m struct {
		matrix
		failure
	}) {
		t.Helper()
		if err := out.Decode(&m); err != nil {
			t.Fatalf("%v; stderr: %s", err, stderr.String())
		}
		for _, c := range m.Cells {
			if c.Result == resultFailed {
				t.Errorf("%s to %s:%d: %s", c.From, c.To, c.Port, c.Reason)
			}
		}
		return m
	}

	m := next()
	if c := result(m.matrix, "alice", "db", 5432); c.Result != resultDenied {
		t.Errorf("before: %+v", c)
	}
	write(`// {"action"`, `{"action"`) // the line that the file invites to try
	m = next()
	if c := result(m.matrix, "alice", "db", 5432); c.Result != resultAllowed || !c.Changed {
		t.Errorf("after: %+v", c)
	}
	if c := result(m.matrix, "alice", "web", 80); c.Result != resultAllowed || c.Changed {
		t.Errorf("what did not change: %+v", c)
	}
	write("tag:web", "tag:wbe")
	if m := next(); len(m.Errors) == 0 || m.Errors[0].Pos.Line == 0 {
		t.Errorf("a broken edit: %+v", m)
	}
	write("", "")
	m = next()
	if c := result(m.matrix, "alice", "db", 5432); c.Result != resultDenied || !c.Changed {
		t.Errorf("after mending it: %+v", c)
	}
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

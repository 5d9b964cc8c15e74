package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/hedge-mesh/hedge/acl"
)

// saveTime is how long an editor may take to finish saving.
const saveTime = 30 * time.Millisecond

// watch begins to watch the ACL file; it does so before the file is first read, so that no edit is missed.
func (d *demo) watch(file string) (err error) {
	d.seen = digest(file)
	if d.edits, err = fsnotify.NewWatcher(); err == nil {
		err = d.edits.Add(filepath.Dir(file)) // the folder: editors put another file in the old one's place
	}
	if err != nil {
		return failed(fmt.Errorf("cannot watch %s: %w", file, err), "hedge demo --once needs no watch")
	}
	return nil
}

// follow waits for edits of the ACL file until ctx is done: each is enforced, tried and shown.
func (a *app) follow(ctx context.Context, d *demo, last *matrix) error {
	w := d.edits
	var saved <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			if !a.json {
				fmt.Fprintln(a.stdout, "\nstopping")
			}
			return nil
		case err := <-d.mesh.dead:
			return err
		case err := <-w.Errors:
			return fmt.Errorf("watch %s: %w", d.mesh.ACL, err)
		case e := <-w.Events:
			if filepath.Clean(e.Name) == filepath.Clean(d.mesh.ACL) && saved == nil {
				saved = time.After(saveTime)
			}
		case <-saved:
			saved = nil
			now := digest(d.mesh.ACL)
			if bytes.Equal(now, d.seen) {
				continue
			}
			d.seen, d.begin = now, time.Now()
			m, err := a.apply(ctx, d, last)
			if err != nil {
				return err
			}
			if m != nil {
				last = m
			}
		}
	}
}

// apply has the changed file enforced, and shows what it makes of the matrix, or what is wrong with it.
func (a *app) apply(ctx context.Context, d *demo, last *matrix) (*matrix, error) {
	if err := d.mesh.server.Reload(); err != nil {
		code, next := classify(err)
		f := failure{strings.TrimSpace(err.Error()), next, code, acl.Of(err)}
		return nil, a.print(f, func(w io.Writer) {
			fmt.Fprintf(w, "\n%s has errors; the policy before it stays:\n\n", d.mesh.ACL)
			if len(f.Errors) > 0 {
				fmt.Fprintln(w, strings.TrimRight(f.Errors.Render(), "\n"))
			} else {
				fmt.Fprintln(w, f.Error)
			}
		})
	}
	if err := d.settled(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, nil
		}
		return nil, err
	}
	m := d.probe(ctx, last)
	if ctx.Err() != nil {
		return nil, nil
	}
	return m, a.print(m, func(w io.Writer) {
		fmt.Fprintf(w, "\n%s was saved; enforced and tried again %s later:\n\n", filepath.Base(d.mesh.ACL), short(time.Duration(m.Took)))
		m.show(w)
	})
}

// digest tells one state of a file from another; nil if it cannot be read.
func digest(file string) []byte {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

func showDemo(w io.Writer, d *demo, m *matrix, stays bool) {
	fmt.Fprintf(w, "A network of three nodes, in this process, after %s.\n\n", short(time.Duration(m.Took)))
	var rows [][]string
	for i, n := range demoNodes {
		s := d.nodes[i].Status()
		rows = append(rows, []string{"  " + n.name, first(s.Addrs), owner(s.User, s.Tags)})
	}
	table(w, rows...)
	fmt.Fprintln(w)
	m.show(w)
	if !stays {
		return
	}
	fmt.Fprintf(w, "\nEdit the policy and save it; everything is tried again at once:\n  %s\n", m.ACL)
	fmt.Fprintf(w, "Be alice, from another terminal:\n  curl --socks5-hostname %s http://web.hedge.internal/\n", m.SOCKS5)
	fmt.Fprintf(w, "Ctrl-C ends it all.\n")
}

// show draws the matrix, and says why each cell is as it is:
//
//	            alice:22  web:22   web:80   db:22   db:5432
//	alice       ·         allowed  allowed  denied  denied *
func (m *matrix) show(w io.Writer) {
	type column struct {
		to   string
		port uint16
	}
	var columns []column
	width := map[column]int{}
	cells := map[string]map[column]cell{}
	for _, n := range demoNodes {
		cells[n.name] = map[column]cell{}
		for _, p := range n.ports {
			c := column{n.name, p}
			columns, width[c] = append(columns, c), max(len(fmt.Sprintf("%s:%d", n.name, p)), len("allowed *"))
		}
	}
	for _, c := range m.Cells {
		cells[c.From][column{c.To, c.Port}] = c
	}
	fmt.Fprintf(w, "  %-8s", "from")
	for _, c := range columns {
		fmt.Fprintf(w, "%-*s  ", width[c], fmt.Sprintf("%s:%d", c.to, c.port))
	}
	fmt.Fprintln(w)
	changed := false
	for _, n := range demoNodes {
		fmt.Fprintf(w, "  %-8s", n.name)
		for _, col := range columns {
			c, ok := cells[n.name][col]
			text := "·"
			if ok {
				text = c.Result
			}
			if c.Changed {
				text, changed = text+" *", true
			}
			fmt.Fprint(w, paint(w, c.Result, fmt.Sprintf("%-*s", width[col], text)), "  ")
		}
		fmt.Fprintln(w)
	}
	if changed {
		fmt.Fprintln(w, "  * changed")
	}
	fmt.Fprintln(w)
	for _, c := range m.Cells {
		mark := " "
		if c.Changed {
			mark = "*"
		}
		extra := ""
		if c.Result == resultAllowed {
			extra = ", " + short(time.Duration(c.RTT))
			if c.Path != "" {
				extra += " by " + c.Path
			}
		}
		fmt.Fprintf(w, "%s %-18s %s%s\n", mark, fmt.Sprintf("%s to %s:%d", c.From, c.To, c.Port), c.Reason, extra)
	}
}

// paint colours a result on a terminal.
func paint(w io.Writer, result, text string) string {
	if !isTerminal(w) || os.Getenv("NO_COLOR") != "" {
		return text
	}
	colour := map[string]string{resultAllowed: "32", resultDenied: "31", resultFailed: "33"}[result]
	if colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

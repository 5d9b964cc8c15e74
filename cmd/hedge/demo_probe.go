package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hedge-mesh/hedge/node"
)

// matrix is what became of every connection of the demo.
type matrix struct {
	ACL      string       `json:"acl"`
	SOCKS5   string       `json:"socks5"`
	Revision uint64       `json:"revision"`
	Took     node.Seconds `json:"took_seconds"` // since the start, or since the file was saved
	Cells    []cell       `json:"cells"`
}

// cell is one connection that was tried.
type cell struct {
	From    string       `json:"from"`
	To      string       `json:"to"`
	Port    uint16       `json:"port"`
	Result  string       `json:"result"` // "allowed", "denied", or "failed": neither, which is a fault
	Reason  string       `json:"reason"`
	RTT     node.Seconds `json:"rtt_seconds,omitzero"` // to connect and be answered
	Path    string       `json:"path,omitempty"`
	Changed bool         `json:"changed,omitempty"`
}

const (
	resultAllowed = "allowed"
	resultDenied  = "denied"
	resultFailed  = "failed"
)

// probeTimeout bounds one connection and its answer.
const probeTimeout = 3 * time.Second

// probe tries every connection between two nodes, all at once, and marks what is not as it was.
func (d *demo) probe(ctx context.Context, before *matrix) *matrix {
	m := &matrix{ACL: d.mesh.ACL, SOCKS5: d.nodes[0].Status().Proxy, Revision: d.nodes[0].Status().Policy.Revision}
	for _, from := range demoNodes {
		for _, to := range demoNodes {
			for _, port := range to.ports {
				if from.name != to.name {
					m.Cells = append(m.Cells, cell{From: from.name, To: to.name, Port: port})
				}
			}
		}
	}
	var wg sync.WaitGroup
	for i := range m.Cells {
		wg.Go(func() { d.try(ctx, &m.Cells[i]) })
	}
	wg.Wait()
	if before != nil {
		for i := range m.Cells {
			m.Cells[i].Changed = m.Cells[i].Result != before.Cells[i].Result
		}
	}
	m.Took = node.Seconds(time.Since(d.begin))
	return m
}

func (d *demo) node(name string) *node.Node {
	return d.nodes[slices.IndexFunc(demoNodes, func(n demoNode) bool { return n.name == name })]
}

// try makes a connection over the mesh and asks who is there.
func (d *demo) try(ctx context.Context, c *cell) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	src, dst := d.node(c.From), d.node(c.To)
	begin := time.Now()
	hostport := fmt.Sprintf("%s:%d", c.To, c.Port)
	conn, err := src.DialContext(ctx, "tcp", hostport)
	_, unknown := errors.AsType[*node.UnknownNameError](err)
	if unknown { // no rule lets the two see each other, so the name means nothing there; the address might
		hostport = fmt.Sprintf("%s:%d", first(dst.Status().Addrs), c.Port)
		conn, err = src.DialContext(ctx, "tcp", hostport)
	}
	if err == nil {
		err = greet(ctx, conn, c)
	}
	c.RTT = node.Seconds(time.Since(begin))
	c.judge(src, hostport, unknown, err)
	for _, p := range src.Status().Peers {
		if p.Name == c.To && c.Result == resultAllowed && p.Path.Kind != "none" {
			c.Path = p.Path.String()
		}
	}
}

// greet asks for / and wants the answer of the service it meant to reach.
func greet(ctx context.Context, conn net.Conn, c *cell) error {
	defer conn.Close()
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+c.To+"/", nil)
	if err != nil {
		return err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if want := fmt.Sprintf("%s:%d says", c.To, c.Port); err == nil && !strings.HasPrefix(string(b), want) {
		err = fmt.Errorf("another service answered: %q", b)
	}
	return err
}

// judge says what an attempt came to. Only a refusal by policy is a denial; any other failure is told as it is.
func (c *cell) judge(src *node.Node, hostport string, stranger bool, err error) {
	host, _, _ := net.SplitHostPort(hostport)
	why, werr := src.Why(node.WhyQuery{Dst: host, Port: c.Port})
	denied, isDenied := errors.AsType[*node.DeniedError](err)
	switch {
	case err == nil:
		c.Result, c.Reason = resultAllowed, "it answered"
		if werr == nil {
			c.Reason = why.Text
		}
	case stranger: // a node is told of another only if a rule lets one of them reach the other
		c.Result, c.RTT = resultDenied, 0
		c.Reason = fmt.Sprintf("denied: no rule lets %s reach %s on tcp/%d, nor the other way: neither knows of the other", c.From, c.To, c.Port)
	case isDenied:
		c.Result, c.Reason, c.RTT = resultDenied, denied.Why.Text, 0
	case werr == nil && !why.Allow:
		c.Result, c.Reason, c.RTT = resultDenied, why.Text, 0
	default:
		c.Result, c.Reason = resultFailed, err.Error()
	}
}

// failure is an error if any connection came to neither of the two ends that a policy knows.
func (m *matrix) failure() error {
	for _, c := range m.Cells {
		if c.Result == resultFailed {
			return &fault{exitUnreachable, fmt.Errorf("%s did not reach %s:%d: %s", c.From, c.To, c.Port, c.Reason), "run it again with --log-level debug to see why"}
		}
	}
	return nil
}

package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"github.com/hedge-mesh/hedge/derp"
)

// metricsFlag is what --metrics is for.
const metricsFlag = "loopback `HOST:PORT` to serve Prometheus metrics on, at /metrics (default: nowhere)"

// checkMetrics: counters tell strangers how much a mesh talks, so they are for this machine only.
func checkMetrics(addr string) error {
	if addr == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return usage(fmt.Errorf("--metrics %q is no address: %w", addr, err), "write it as 127.0.0.1:PORT")
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return usage(fmt.Errorf("--metrics %q is not on loopback, and has no password", addr), "write it as 127.0.0.1:PORT, and let a collector on this machine fetch it")
	}
	return nil
}

// listenMetrics opens addr, nothing if it is empty.
func listenMetrics(addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, failed(fmt.Errorf("cannot serve metrics: %w", err), "choose another address with --metrics 127.0.0.1:PORT")
	}
	return l, nil
}

// metricsHandler answers GET /metrics with what write appends.
func metricsHandler(write func(*metrics)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		var m metrics
		write(&m)
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(m.Bytes()) // the reader has gone
	})
	return mux
}

// metrics is text in Prometheus' exposition format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/).
// It is written by hand: all there is to tell are counters that a snapshot gives, and the client library would bring 2.9 MB,
// protocol buffers and their reflection into a program that strangers talk to.
type metrics struct{ bytes.Buffer }

func (m *metrics) counter(name, help string, v uint64) { m.family(name, help, "counter", "", v) }
func (m *metrics) gauge(name, help string, v uint64)   { m.family(name, help, "gauge", "", v) }

// labelled is a counter in parts.
type labelled struct {
	value string
	n     uint64
}

func (m *metrics) counters(name, help, label string, parts ...labelled) {
	for i, p := range parts {
		if i > 0 {
			help = ""
		}
		m.family(name, help, "counter", fmt.Sprintf("{%s=%q}", label, p.value), p.n)
	}
}

func (m *metrics) family(name, help, kind, labels string, v uint64) {
	if help != "" {
		fmt.Fprintf(m, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	fmt.Fprintf(m, "%s%s %d\n", name, labels, v)
}

// relay writes a relay's counters.
func (m *metrics) relay(s derp.Stats) {
	m.gauge("hedge_relay_clients", "Nodes connected now.", uint64(s.Clients))
	m.counter("hedge_relay_connections_total", "Connections admitted.", s.Accepted)
	m.counter("hedge_relay_refused_total", "Upgrade requests refused, for whatever reason.", s.Refused)
	m.counters("hedge_relay_ended_total", "Connections that the relay ended.", "reason",
		labelled{"replaced", s.Replaced}, labelled{"kicked", s.Kicked}, labelled{"expired", s.Expired}, labelled{"abuse", s.Abused})
	m.counters("hedge_relay_packets_total", "Packets from and to nodes.", "direction", labelled{"in", s.PacketsIn}, labelled{"out", s.PacketsOut})
	m.counters("hedge_relay_bytes_total", "Bytes from and to nodes, with the relay's headers.", "direction", labelled{"in", s.BytesIn}, labelled{"out", s.BytesOut})
	m.counters("hedge_relay_udp_packets_total", "Those of the packets that came and went by UDP.", "direction", labelled{"in", s.UDPIn}, labelled{"out", s.UDPOut})
	m.counters("hedge_relay_dropped_packets_total", "Packets not forwarded.", "reason",
		labelled{"queue_full", s.DroppedQueue}, labelled{"urgent_queue_full", s.DroppedUrgent},
		labelled{"unknown_destination", s.DroppedUnknown}, labelled{"rate", s.DroppedRate})
	m.counter("hedge_relay_forged_datagrams_total", "Datagrams that claimed a session and were not genuine, or had come before.", s.Forged)
}

package main

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hedge-mesh/hedge/derp"
)

func TestMetricsText(t *testing.T) {
	w := httptest.NewRecorder()
	metricsHandler(func(m *metrics) {
		m.relay(derp.Stats{Clients: 3, PacketsIn: 7, DroppedRate: 2})
	}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		"# HELP hedge_relay_clients Nodes connected now.\n# TYPE hedge_relay_clients gauge\nhedge_relay_clients 3\n",
		"hedge_relay_packets_total{direction=\"in\"} 7\nhedge_relay_packets_total{direction=\"out\"} 0\n",
		"hedge_relay_dropped_packets_total{reason=\"rate\"} 2\n",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %q in\n%s", want, w.Body)
		}
	}
	if n := strings.Count(w.Body.String(), "# TYPE hedge_relay_packets_total"); n != 1 {
		t.Errorf("a family is described %d times", n)
	}
}

func TestCheckMetrics(t *testing.T) {
	for addr, ok := range map[string]bool{"": true, "127.0.0.1:9100": true, "[::1]:9100": true, "localhost:9100": true,
		":9100": false, "0.0.0.0:9100": false, "192.0.2.1:9100": false, "9100": false, "example.com:9100": false} {
		if err := checkMetrics(addr); (err == nil) != ok {
			t.Errorf("--metrics %q: %v", addr, err)
		}
	}
}

package portmap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	hostileGateway = Gateway{Router: netip.MustParseAddr("127.0.0.2"), Self: netip.MustParseAddr("127.0.0.1")}
	neighbour      = "127.0.0.3" // another machine on the same network
)

func listenAt(t *testing.T, host string, port int) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(host), Port: port})
	if err != nil {
		t.Skipf("needs %s: %v", host, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// R-portmap-hostile: only the gateway is believed. A neighbour that has overheard the request, nonce and all, and answers it
// in the gateway's place is not heard, by PCP and NAT-PMP.
func TestRPortmapNeighbour(t *testing.T) {
	for _, which := range []string{"PCP", "NAT-PMP"} {
		t.Run(which, func(t *testing.T) {
			gw, evil := listenAt(t, "127.0.0.2", 0), listenAt(t, neighbour, 0)
			var wg sync.WaitGroup
			wg.Go(func() {
				for b := make([]byte, 2048); ; {
					n, from, err := gw.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					answer := []byte{0, 0x80 | b[1], 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8}
					if b[0] == 2 {
						answer = answerTo(b[:n], 0, netip.MustParseAddrPort("198.51.100.66:666"), 120)
					}
					evil.WriteToUDPAddrPort(answer, from)
				}
			})
			defer wg.Wait()
			defer gw.Close()
			port := uint16(gw.LocalAddr().(*net.UDPAddr).Port)
			var p protocol = natpmp{port: port}
			if which == "PCP" {
				p = &pcp{port: port}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if at, _, err := p.mapPort(ctx, hostileGateway, 41641, 0, time.Hour); err == nil {
				t.Errorf("a neighbour says it is %v, and is believed", at)
			}
		})
	}
}

const description = `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">%s<device><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>%s</controlURL></service></serviceList></device></root>`

// R-portmap-hostile: what a gateway or its neighbour says by UPnP sends nobody anywhere but to the gateway, takes no memory,
// ends in time, and is shown to nobody's terminal as it is.
func TestRPortmapUPnP(t *testing.T) {
	for _, c := range []struct {
		name   string
		at     string // where the answer to the search comes from
		says   func(gw, evil string) string
		serves func(w http.ResponseWriter, r *http.Request, evil string)
		want   string
	}{
		{"a neighbour answers the search", neighbour, func(gw, _ string) string { return gw }, nil, "does not answer"},
		{"the answer names a neighbour", "127.0.0.2", func(_, evil string) string { return evil }, nil, "does not answer"},
		{"the description is elsewhere", "127.0.0.2", func(gw, _ string) string { return gw },
			func(w http.ResponseWriter, r *http.Request, evil string) { http.Redirect(w, r, evil, http.StatusFound) }, "another machine"},
		{"its base is elsewhere", "127.0.0.2", func(gw, _ string) string { return gw },
			func(w http.ResponseWriter, r *http.Request, evil string) {
				fmt.Fprintf(w, description, "<URLBase>"+evil+"</URLBase>", "/ctl")
			}, "another machine"},
		{"its control is elsewhere", "127.0.0.2", func(gw, _ string) string { return gw },
			func(w http.ResponseWriter, r *http.Request, evil string) { fmt.Fprintf(w, description, "", evil) }, "another machine"},
		{"a description without end", "127.0.0.2", func(gw, _ string) string { return gw },
			func(w http.ResponseWriter, r *http.Request, _ string) {
				for block := strings.Repeat("<a>", 20_000); ; {
					if _, err := io.WriteString(w, block); err != nil {
						return
					}
				}
			}, "does not read"},
		{"a status for the terminal", "127.0.0.2", func(gw, _ string) string { return gw },
			func(w http.ResponseWriter, r *http.Request, _ string) {
				h, _, _ := w.(http.Hijacker).Hijack()
				fmt.Fprint(h, "HTTP/1.1 500 \x1b]0;evil\x07\x1b[2J"+strings.Repeat("x", 5000)+"\r\n\r\n")
				h.Close()
			}, "does not describe itself"},
		{"a fault for the terminal", "127.0.0.2", func(gw, _ string) string { return gw },
			func(w http.ResponseWriter, r *http.Request, _ string) {
				if r.Method == http.MethodGet {
					fmt.Fprintf(w, description, "", "/ctl")
					return
				}
				w.Header().Set("Content-Type", "text/xml")
				w.WriteHeader(http.StatusInternalServerError)
				fmt.Fprint(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode>`+
					"<faultstring>\u009b31m\u202e&#x9;&#xA;evil</faultstring></s:Fault></s:Body></s:Envelope>")
			}, "evil"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var reached sync.Map
			serve := func(host string, h http.HandlerFunc) string {
				l, err := net.Listen("tcp", host+":0")
				if err != nil {
					t.Skip(err)
				}
				srv := &http.Server{Handler: h}
				var wg sync.WaitGroup
				wg.Go(func() { _ = srv.Serve(l) })
				t.Cleanup(func() { srv.Close(); wg.Wait() })
				return "http://" + l.Addr().String() + "/"
			}
			evil := serve(neighbour, func(w http.ResponseWriter, r *http.Request) { reached.Store(r.URL.Path, true) })
			gw := serve("127.0.0.2", func(w http.ResponseWriter, r *http.Request) {
				if c.serves != nil {
					c.serves(w, r, evil)
				}
			})
			search := listenAt(t, "127.0.0.2", 0)
			from := search
			if c.at != "127.0.0.2" {
				from = listenAt(t, c.at, 0)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for b := make([]byte, 2048); ; {
					_, who, err := search.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					from.WriteToUDPAddrPort([]byte("HTTP/1.1 200 OK\r\nLOCATION: "+c.says(gw, evil)+"\r\n\r\n"), who)
				}
			})
			defer wg.Wait()
			defer search.Close()
			u := &upnp{ssdp: search.LocalAddr().(*net.UDPAddr).AddrPort()}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			at, _, err := u.mapPort(ctx, hostileGateway, 41641, 0, time.Hour)
			runtime.ReadMemStats(&after)
			if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, %q, want an error that says %q", at, err, c.want)
			}
			if text := err.Error(); len(text) > 400 || strings.ContainsAny(text, "\x1b\x07\n\t\u009b\u202e") {
				t.Errorf("what is shown: %q", text)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 {
				t.Errorf("it took %d MiB", took>>20)
			}
			reached.Range(func(path, _ any) bool { t.Errorf("%v of the neighbour was asked for", path); return true })
		})
	}
}

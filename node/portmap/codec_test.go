package portmap

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

var nonce = pcpNonce{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

// answerTo is the answer that a gateway would give to a PCP request.
func answerTo(req []byte, code byte, external netip.AddrPort, lifetime byte) []byte {
	b := bytes.Clone(req)
	b[1] |= 0x80
	b[3] = code
	copy(b[4:8], []byte{0, 0, 0, lifetime})
	clear(b[8:24])
	b[42], b[43] = byte(external.Port()>>8), byte(external.Port())
	a := external.Addr().As16()
	copy(b[44:], a[:])
	return b
}

func TestPCPBytes(t *testing.T) {
	req := appendPCP(nil, netip.MustParseAddr("192.168.1.7"), nonce, 41641, 0, time.Hour)
	const want = "0201000000000e10" + "00000000000000000000ffffc0a80107" + "0102030405060708090a0b0c" + "11000000" + "a2a90000" + "00000000000000000000ffff00000000"
	if got := hex.EncodeToString(req); got != want {
		t.Fatalf("request\n%s, want\n%s", got, want)
	}
	ext := netip.MustParseAddrPort("203.0.113.5:50000")
	good := answerTo(req, 0, ext, 120)
	for _, tt := range []struct {
		name string
		b    []byte
		want string
	}{
		{"good", good, ""},
		{"good, with an option", append(bytes.Clone(good), 1, 0, 0, 0), ""},
		{"nothing", nil, "no PCP answer"},
		{"short", good[:59], "no PCP answer"},
		{"too long", append(bytes.Clone(good), make([]byte, 1100)...), "no PCP answer"},
		{"a request", req, "no PCP answer"},
		{"NAT-PMP only", []byte{0, 0x81, 0, 1, 0, 0, 0, 0}, "does not speak PCP"},
		{"another version", answerTo(req, 1, ext, 0), "does not speak PCP"},
		{"refused", answerTo(req, 2, ext, 0), "not authorized"},
		{"refused for a reason of later", answerTo(req, 99, ext, 0), "result 99"},
		{"another's", answerTo(appendPCP(nil, netip.MustParseAddr("192.168.1.7"), pcpNonce{9}, 41641, 0, time.Hour), 0, ext, 120), errNotOurs.Error()},
		{"of another port", answerTo(appendPCP(nil, netip.MustParseAddr("192.168.1.7"), nonce, 41642, 0, time.Hour), 0, ext, 120), errNotOurs.Error()},
	} {
		at, lease, err := parsePCP(tt.b, nonce, 41641)
		switch {
		case tt.want == "" && (err != nil || at != ext || lease != 2*time.Minute):
			t.Errorf("%s: %s for %v, %v", tt.name, at, lease, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestNATPMPBytes(t *testing.T) {
	for _, tt := range []struct{ name, b, want string }{
		{"good", "008100000000000ba2a9c35000000e10", ""},
		{"nothing", "", "no NAT-PMP answer"},
		{"short", "008100000000000ba2a9c350", "no NAT-PMP answer"},
		{"a request", "00010000a2a9000000000e10", "no NAT-PMP answer"},
		{"PCP", "028100000000000ba2a9c35000000e10", "does not speak NAT-PMP"},
		{"an address", "008000000000000bcb007105", errNotOurs.Error()},
		{"refused", "008100020000000b", "not authorized"},
		{"refused for a reason of later", "00810063", "result 99"},
	} {
		raw, _ := hex.DecodeString(tt.b)
		b, err := parsePMP(raw, pmpMapUDP, 8)
		switch {
		case tt.want == "" && (err != nil || hex.EncodeToString(b) != "a2a9c35000000e10"):
			t.Errorf("%s: %x, %v", tt.name, b, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestSSDPAnswer(t *testing.T) {
	gw := netip.MustParseAddr("192.168.1.1")
	for _, tt := range []struct {
		name, answer string
		ok           bool
	}{
		{"good", "HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/root.xml\r\n\r\n", true},
		{"of another machine", "HTTP/1.1 200 OK\r\nLOCATION: http://169.254.169.254/latest\r\n\r\n", false},
		{"by name", "HTTP/1.1 200 OK\r\nLOCATION: http://router.lan/root.xml\r\n\r\n", false},
		{"a file", "HTTP/1.1 200 OK\r\nLOCATION: file:///etc/passwd\r\n\r\n", false},
		{"an error", "HTTP/1.1 404 Not Found\r\nLOCATION: http://192.168.1.1/\r\n\r\n", false},
		{"without a place", "HTTP/1.1 200 OK\r\n\r\n", false},
		{"noise", "\x00\x01\x02", false},
	} {
		at, ok := locationOf([]byte(tt.answer))
		if ok = ok && isAt(at, gw); ok != tt.ok {
			t.Errorf("%s: %v", tt.name, ok)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	req := appendPCP(nil, netip.MustParseAddr("192.168.1.7"), nonce, 41641, 0, time.Hour)
	f.Add(answerTo(req, 0, netip.MustParseAddrPort("203.0.113.5:50000"), 120))
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/root.xml\r\n\r\n"))
	f.Add([]byte(`<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device><serviceList><service></service></serviceList></device></root>`))
	at, _ := url.Parse("http://192.168.1.1/")
	f.Fuzz(func(t *testing.T, b []byte) {
		if ap, _, err := parsePCP(b, nonce, 41641); err == nil && (len(b) < pcpSize || !bytes.Equal(b[24:36], nonce[:])) {
			t.Errorf("%s from %x", ap, b)
		}
		for _, op := range []byte{pmpAddress, pmpMapUDP} {
			if rest, err := parsePMP(b, op, 8); err == nil && len(rest) != 8 {
				t.Errorf("%x from %x", rest, b)
			} else if err != nil && errors.Is(err, errNotOurs) && b[1] == 0x80|op {
				t.Errorf("ours is not ours: %x", b)
			}
		}
		if u, ok := locationOf(b); ok && u == nil {
			t.Error("a place that is none")
		}
		_, _ = parseDevice(bytes.NewReader(b), at)
	})
}

package proxy

import (
	"bytes"
	"net"
	"strings"
	"testing"
)

// FuzzRequest: whatever is accepted is a host and port that mean what they say, and survives being written again.
func FuzzRequest(f *testing.F) {
	// VER CMD RSV ATYP ADDR PORT
	f.Add([]byte("\x05\x01\x00\x01\x64\x40\x00\x02\x00\x50"))                                                 // CONNECT 100.64.0.2:80
	f.Add([]byte("\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"))                                                 // UDP ASSOCIATE 0.0.0.0:0
	f.Add([]byte("\x05\x01\x00\x03\x03web\x01\xbb"))                                                          // CONNECT web:443
	f.Add([]byte("\x05\x01\x00\x04\xfd\x68\x65\x64\x67\x65\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x16")) // CONNECT [fd68:6564:6765::2]:22
	f.Add([]byte("\x05\x01\x00\x03\x0a100.64.0.2\x00\x50"))                                                   // an address written as a name
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		cmd, to, err := readRequest(r)
		if err != nil {
			return
		}
		if cmd != cmdConnect && cmd != cmdAssociate {
			t.Fatalf("command %d", cmd)
		}
		host, port, err := net.SplitHostPort(to.String())
		if err != nil || host == "" || port == "" || strings.ContainsAny(host, "\x00\r\n /@[]%") {
			t.Fatalf("%q: %v", to, err)
		}
		again, err := readTarget(bytes.NewReader(to.append(nil)))
		if err != nil || again != to {
			t.Fatalf("%v became %v: %v", to, again, err)
		}
	})
}

// FuzzDatagram: the data is the end of the datagram, and the head written again leads to the same target.
func FuzzDatagram(f *testing.F) {
	// RSV RSV FRAG ATYP ADDR PORT DATA
	f.Add([]byte("\x00\x00\x00\x01\x64\x40\x00\x02\x00\x35query"))
	f.Add([]byte("\x00\x00\x00\x03\x03dns\x00\x35query"))
	f.Add([]byte("\x00\x00\x01\x01\x64\x40\x00\x02\x00\x35fragment"))
	f.Fuzz(func(t *testing.T, b []byte) {
		to, data, err := parseDatagram(b)
		if err != nil {
			return
		}
		if !bytes.HasSuffix(b, data) || to.port == 0 {
			t.Fatalf("%v %q of %q", to, data, b)
		}
		again, data2, err := parseDatagram(append(to.append([]byte{0, 0, 0}), data...))
		if err != nil || again != to || !bytes.Equal(data, data2) {
			t.Fatalf("%v became %v: %v", to, again, err)
		}
	})
}

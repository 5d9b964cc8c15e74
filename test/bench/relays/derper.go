package relays

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/crypto/nacl/box"
)

// derperVersion is the newest that builds with the Go of this module.
const derperVersion = "v1.102.5"

// BuildDerper makes derper in a module of its own, in the user's cache, where it stays; hurried, it only looks there.
func BuildDerper(ctx context.Context, hurried bool) (bin string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "hedge-bench", "derper-"+derperVersion)
	bin = filepath.Join(dir, "derper")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if hurried {
		return "", errors.New("not built yet, which takes a minute; a run without -quick does it")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module derper\n"), 0o600); err != nil {
		return "", err
	}
	for _, args := range [][]string{{"get", "tailscale.com/cmd/derper@" + derperVersion}, {"build", "-trimpath", "-o", bin + ".new", "tailscale.com/cmd/derper"}} {
		c := exec.CommandContext(ctx, "go", args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off", "CGO_ENABLED=0")
		if said, err := c.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go %s derper %s: %w: %s", args[0], derperVersion, err, lastLine(said))
		}
	}
	return bin, os.Rename(bin+".new", bin)
}

func lastLine(b []byte) []byte {
	b = bytes.TrimSpace(b)
	return b[bytes.LastIndexByte(b, '\n')+1:]
}

// derper runs it with a certificate that it makes itself.
func (r *relay) derper(ctx context.Context, bin, dir string) error {
	host, _, err := net.SplitHostPort(r.addr)
	if err != nil {
		return err
	}
	if err := r.run(ctx, dir, func([]byte) bool { return true }, bin, "-a", r.addr, "-hostname", host, "-certmode", "manual", "-certdir", dir,
		"-c", filepath.Join(dir, "derper.json"), "-http-port", "-1", "-stun=false"); err != nil {
		return err
	}
	r.dial = func(ctx context.Context, receive func(id, [][]byte)) (link, id, error) {
		return dialDerper(ctx, r.addr, receive)
	}
	return nil
}

// The frames of its protocol that a client needs:
//
//	┌──────────┬─────────────────────┬──────────────────────────────────────────┐
//	│ type (1) │ length (4, network  │ 1 server's key: magic (8) ‖ key (32)     │
//	│          │ order) of the rest  │ 2 client: key (32) ‖ nonce (24) ‖ box    │
//	│          │                     │ 4 send:   destination (32) ‖ packet      │
//	│          │                     │ 5 received: source (32) ‖ packet         │
//	└──────────┴─────────────────────┴──────────────────────────────────────────┘
const (
	frameServerKey  = 1
	frameClientInfo = 2
	frameSend       = 4
	frameRecv       = 5
	frameHead       = 5
	derpMagic       = "DERP🔑"
	maxFrame        = 1 << 20
)

// derpLink is a client of derper's.
type derpLink struct {
	conn net.Conn
	mu   sync.Mutex // of w
	w    *bufio.Writer
	done chan struct{}
}

func dialDerper(ctx context.Context, addr string, receive func(id, [][]byte)) (link, id, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	pub, priv, err := box.GenerateKey(rand.Reader)
	if err != nil {
		return nil, id{}, err
	}
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // it is on loopback, and carries nothing of worth
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, id{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	l := &derpLink{conn: conn, w: bufio.NewWriterSize(conn, 64<<10), done: make(chan struct{})}
	rd := bufio.NewReaderSize(conn, 64<<10)
	if err := l.login(rd, pub, priv); err != nil {
		_ = conn.Close()
		return nil, id{}, errors.Join(err, ctx.Err())
	}
	stop()
	go l.read(rd, receive)
	return l, *pub, nil
}

// login asks for the protocol, reads the server's key, says who this is, and reads what the server says to that.
func (l *derpLink) login(rd *bufio.Reader, pub, priv *[32]byte) error {
	q, err := http.NewRequest(http.MethodGet, "https://derper/derp", nil)
	if err != nil {
		return err
	}
	q.Header.Set("Upgrade", "DERP")
	q.Header.Set("Connection", "Upgrade")
	if err := q.Write(l.w); err != nil {
		return err
	}
	if err := l.w.Flush(); err != nil {
		return err
	}
	a, err := http.ReadResponse(rd, q)
	if err != nil {
		return err
	}
	if a.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("derper answers %s", a.Status)
	}
	kind, body, err := readFrame(rd, nil)
	if err != nil {
		return err
	}
	if kind != frameServerKey || len(body) < len(derpMagic)+32 || string(body[:len(derpMagic)]) != derpMagic {
		return fmt.Errorf("derper begins with a frame of type %d", kind)
	}
	server := id(body[len(derpMagic):][:32])
	var nonce [24]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return err
	}
	hello := box.Seal(append(append([]byte(nil), pub[:]...), nonce[:]...), []byte(`{"version":2,"CanAckPings":false}`), &nonce, &server, priv)
	if err := writeFrame(l.w, frameClientInfo, hello, nil); err != nil {
		return err
	}
	if err := l.w.Flush(); err != nil {
		return err
	}
	_, _, err = readFrame(rd, nil)
	return err
}

func (l *derpLink) Send(to id, pkts [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range pkts {
		if writeFrame(l.w, frameSend, to[:], p) != nil {
			return // it is closed
		}
	}
	_ = l.w.Flush()
}

func (l *derpLink) Close() {
	_ = l.conn.Close()
	<-l.done
}

func (l *derpLink) read(rd *bufio.Reader, receive func(id, [][]byte)) {
	defer close(l.done)
	buf, one := make([]byte, 0, 64<<10), make([][]byte, 1)
	for {
		kind, body, err := readFrame(rd, buf)
		if err != nil {
			return
		}
		if kind == frameRecv && len(body) >= 32 {
			one[0] = body[32:]
			receive(id(body[:32]), one)
		}
	}
}

// readFrame reads one frame, into buf if it has room.
func readFrame(rd *bufio.Reader, buf []byte) (kind byte, body []byte, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(rd, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes", n)
	}
	if int(n) > cap(buf) {
		buf = make([]byte, n)
	}
	body = buf[:n]
	_, err = io.ReadFull(rd, body)
	return head[0], body, err
}

func writeFrame(w *bufio.Writer, kind byte, a, b []byte) error {
	head := [frameHead]byte{kind}
	binary.BigEndian.PutUint32(head[1:], uint32(len(a)+len(b)))
	for _, part := range [][]byte{head[:], a, b} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

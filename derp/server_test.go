package derp

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rs/zerolog"

	"github.com/hedge-mesh/hedge/node/key"
)

// upgrade makes an upgrade request with an Authorization of the test's choice, and returns the status, the answer and its header.
func upgrade(t *testing.T, r *relay, auth string, edit ...func(*http.Request)) (int, string, http.Header) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: clientTLS(r.pub, "127.0.0.1", nil)}
	defer tr.CloseIdleConnections()
	q, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+Path, nil)
	q.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}, "Sec-Websocket-Protocol": {Subprotocol}}
	if auth != "" {
		q.Header.Set("Authorization", auth)
	}
	for _, f := range edit {
		f(q)
	}
	resp, err := tr.RoundTrip(q)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp.StatusCode, "", resp.Header
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(b)), resp.Header
}

func TestAdmission(t *testing.T) {
	r := newRelay(t)
	n, other := newNode(r.control), newNode(r.control)
	now := time.Now()
	flip := func(auth string, at int) string {
		b, _ := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(auth, proofScheme))
		b[at] ^= 1
		return proofScheme + base64.RawURLEncoding.EncodeToString(b)
	}
	good := func() string { return newProof(r.pub, n.ticket, n.machine, time.Now()) }
	used := good()
	if code, text, _ := upgrade(t, r, used); code != http.StatusSwitchingProtocols {
		t.Fatalf("a good proof: %d %s", code, text)
	}
	for _, c := range []struct {
		name string
		auth string
		want *refusal
	}{
		{"no proof", "", refuseProof},
		{"another scheme", "Basic bWU6c2VjcmV0", refuseProof},
		{"not base64", proofScheme + strings.Repeat("!", base64.RawURLEncoding.EncodedLen(proofLen)), refuseProof},
		{"cut short", good()[:200], refuseProof},
		{"endless", proofScheme + strings.Repeat("A", 4000), refuseProof},
		{"all zeros", proofScheme + strings.Repeat("A", base64.RawURLEncoding.EncodedLen(proofLen)), refuseProof},
		{"ticket of a stranger's coordinator", newProof(r.pub, n.ticketUntil(key.NewControl(), now.Add(time.Hour)), n.machine, now), refuseProof},
		{"ticket of another version", flip(good(), 0), refuseProof},
		{"another node key in the ticket", flip(good(), 1), refuseProof},
		{"another machine in the ticket", flip(good(), 33), refuseProof},
		{"another control key in the ticket", flip(good(), 65), refuseProof},
		{"a later expiry in the ticket", flip(good(), 112), refuseProof},
		{"another time in the proof", flip(good(), TicketLen+7), refuseProof},
		{"another nonce in the proof", flip(good(), TicketLen+8), refuseProof},
		{"a broken signature", flip(good(), proofLen-1), refuseProof},
		{"another machine's signature", newProof(r.pub, n.ticket, other.machine, now), refuseProof},
		{"a proof for another relay", newProof(key.PublicOf(key.NewRelay()), n.ticket, n.machine, now), refuseProof},
		{"a ticket that lasts too long", newProof(r.pub, n.ticketUntil(r.control, now.Add(MaxTicketLife+time.Hour)), n.machine, now), refuseProof},
		{"an expired ticket", newProof(r.pub, n.ticketUntil(r.control, now.Add(-time.Second)), n.machine, now), refuseExpired},
		{"a slow clock", newProof(r.pub, n.ticket, n.machine, now.Add(-window-time.Second)), refuseClock},
		{"a fast clock", newProof(r.pub, n.ticket, n.machine, now.Add(window+5*time.Second)), refuseClock},
		{"from before the relay's start", newProof(r.pub, n.ticket, n.machine, r.Server.start.Add(-time.Millisecond)), refuseClock},
		{"used before", used, refuseReplay},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, text, h := upgrade(t, r, c.auth)
			if code != c.want.status || text != c.want.text {
				t.Errorf("got %d %q, want %d %q", code, text, c.want.status, c.want.text)
			}
			if code == http.StatusUnauthorized && (h.Get("WWW-Authenticate") == "" || h.Get(timeHeader) == "") {
				t.Errorf("401 without its headers: %v", h)
			}
		})
	}
	if s := r.Stats(); s.Accepted != 1 {
		t.Errorf("%d were accepted, want the good one alone", s.Accepted)
	}
}

func TestRequestsThatAreNotForARelay(t *testing.T) {
	r := newRelay(t)
	n := newNode(r.control)
	for _, c := range []struct {
		name string
		edit func(*http.Request)
		want *refusal
	}{
		{"a browser's address bar", func(q *http.Request) { q.Header = http.Header{} }, refuseHTTP},
		{"a web page", func(q *http.Request) { q.Header.Set("Origin", "https://example.com") }, refuseOrigin},
		{"a web page of its own", func(q *http.Request) { q.Header.Set("Origin", r.url) }, refuseOrigin},
		{"POST", func(q *http.Request) { q.Method = http.MethodPost }, refuseMethod},
		{"another protocol", func(q *http.Request) { q.Header.Set("Sec-Websocket-Protocol", "derp") }, refuseVersion},
		{"no protocol", func(q *http.Request) { q.Header.Del("Sec-Websocket-Protocol") }, refuseVersion},
	} {
		code, text, _ := upgrade(t, r, newProof(r.pub, n.ticket, n.machine, time.Now()), c.edit)
		if code != c.want.status || text != c.want.text {
			t.Errorf("%s: got %d %q, want %d %q", c.name, code, text, c.want.status, c.want.text)
		}
	}
}

// TestImpersonation: of many attempts with wrong, replayed and misdirected proofs none succeeds. It goes to admit directly, so as
// to try thousands.
func TestImpersonation(t *testing.T) {
	control := key.NewControl()
	s := NewServer(ServerConfig{Key: key.NewRelay(), Trust: []key.ControlPublic{key.PublicOf(control)}})
	defer s.Close()
	victim, thief := newNode(control), newNode(control)
	try := func(auth string) *refusal {
		q, _ := http.NewRequest(http.MethodGet, "/relay", nil)
		q.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {Subprotocol}, "Authorization": {auth}}
		_, f := s.admit(q, time.Now())
		return f
	}
	good := newProof(s.pub, victim.ticket, victim.machine, time.Now())
	if f := try(good); f != nil {
		t.Fatalf("the victim itself: %s", f.text)
	}
	s.leave()
	attempts := 10_000
	if testing.Short() {
		attempts = 500
	}
	wrong := []string{
		good,
		newProof(s.pub, victim.ticket, thief.machine, time.Now()),
		newProof(key.PublicOf(key.NewRelay()), victim.ticket, victim.machine, time.Now()),
		newProof(s.pub, thief.ticket, victim.machine, time.Now()),
	}
	accepted := 0
	for i := range attempts {
		auth := wrong[i%len(wrong)]
		if i%2 == 1 { // and a change somewhere in it
			at := len(proofScheme) + i%(len(auth)-len(proofScheme))
			auth = auth[:at] + string('A'+(auth[at]-'A'+1)%26) + auth[at+1:]
		}
		if try(auth) == nil {
			accepted++
		}
	}
	if accepted != 0 {
		t.Errorf("%d of %d attempts were accepted", accepted, attempts)
	}
}

func TestReplaysAreBounded(t *testing.T) {
	r := replays{max: 100, maxPer: 10}
	now := time.Unix(1e9, 0)
	nonce := func(i int) (n [nonceLen]byte) { n[0], n[1] = byte(i), byte(i>>8); return n }
	m := key.PublicOf(key.NewMachine())
	for i := range 10 {
		if v := r.take(m, nonce(i), now); v != replayFresh {
			t.Fatalf("nonce %d: %d", i, v)
		}
	}
	if v := r.take(m, nonce(10), now); v != replayTooMany {
		t.Errorf("an 11th of one machine: %d", v)
	}
	for i := 10; i < 100; i++ {
		if v := r.take(key.PublicOf(key.NewMachine()), nonce(i), now); v != replayFresh {
			t.Fatalf("nonce %d: %d", i, v)
		}
	}
	if v := r.take(key.PublicOf(key.NewMachine()), nonce(100), now); v != replayFull {
		t.Errorf("a 101st of all: %d", v)
	}
	// Whatever the moment, a proof stays known for as long as its time would let it pass.
	for at := time.Duration(0); at <= 2*window; at += window / 4 {
		if v := r.take(m, nonce(3), now.Add(at)); v != replaySeen {
			t.Errorf("after %v: %d, want seen", at, v)
		}
	}
	if v := r.take(m, nonce(3), now.Add(9*window)); v != replayFresh {
		t.Errorf("long after: %d", v)
	}
	if n := len(r.cur.seen) + len(r.old.seen); n > 1 {
		t.Errorf("%d nonces are kept for ever", n)
	}
}

func TestBars(t *testing.T) {
	b := bars{max: 3}
	k := func(i byte) key.NodePublic { return key.NodePublicFromRaw([32]byte{i}) }
	t0 := time.Unix(1e9, 0)
	b.add(k(1), t0)
	if !b.has(k(1), t0) || !b.has(k(1), t0.Add(-time.Hour)) || b.has(k(1), t0.Add(time.Millisecond)) || b.has(k(2), t0) {
		t.Error("a bar holds for other tickets than those from before it")
	}
	for i := range byte(3) {
		b.add(k(10+i), t0.Add(time.Duration(i+1)*time.Second))
	}
	if len(b.since) > 3 || !b.has(k(1), t0) || !b.has(k(99), t0.Add(time.Second)) || b.has(k(99), t0.Add(time.Minute)) {
		t.Error("when there are too many bars, older tickets are not refused altogether")
	}
}

// closeOf reads until the connection ends, and returns the reason.
func closeOf(t *testing.T, ws *websocket.Conn) *websocket.CloseError {
	t.Helper()
	ws.SetReadDeadline(time.Now().Add(patience))
	for {
		if _, _, err := ws.ReadMessage(); err != nil {
			var ce *websocket.CloseError
			if !errors.As(err, &ce) {
				t.Fatalf("the connection ended with %v, want a close", err)
			}
			return ce
		}
	}
}

func TestNewestConnectionWins(t *testing.T) {
	r := newRelay(t)
	n := newNode(r.control)
	sender := newClientOf(t, newNode(r.control), r).waitUp(t)
	first := n.raw(t, r)
	second := n.raw(t, r)
	if ce := closeOf(t, first); ce.Code != endReplaced.code {
		t.Errorf("the old connection was told %v", ce)
	}
	sender.Send(n.pub, [][]byte{data("for the new one")})
	if _, b, err := second.ReadMessage(); err != nil || !bytes.Contains(b, []byte("for the new one")) {
		t.Errorf("the new connection got %q, %v", b, err)
	}
	eventually(t, "the old connection is counted", func() bool { return r.Stats().Replaced > 0 }) // once its socket is closed
	if s := r.Stats(); s.Clients != 2 || s.Replaced != 1 {
		t.Errorf("stats: %+v", s)
	}
}

// TestQueueMovesToNewConnection: what could not be written to a stalled connection comes out of the one that replaces it.
func TestQueueMovesToNewConnection(t *testing.T) {
	r := newRelay(t)
	n := newNode(r.control)
	n.raw(t, r) // never reads
	sender := newNode(r.control).raw(t, r)
	stall(t, r, sender, n.pub)
	sender.WriteMessage(websocket.BinaryMessage, appendPacket(nil, n.pub.Raw(), data("the last words")))
	c := r.mesh[key.PublicOf(r.control)].get(n.pub)
	eventually(t, "it is queued", func() bool {
		c.q.mu.Lock()
		defer c.q.mu.Unlock()
		return len(c.q.data) > 0 && bytes.HasSuffix(c.q.data[len(c.q.data)-1].buf, []byte("the last words"))
	})
	second := n.raw(t, r)
	second.SetReadDeadline(time.Now().Add(patience))
	for {
		_, b, err := second.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasSuffix(b, []byte("the last words")) {
			return
		}
	}
}

// stall sends to a node that does not read until the relay drops packets for it.
func stall(t *testing.T, r *relay, sender *websocket.Conn, to key.NodePublic) {
	t.Helper()
	var msg []byte
	for range 40 {
		msg = appendPacket(msg, to.Raw(), data(strings.Repeat("x", 1276)))
	}
	before := r.Stats().DroppedQueue
	eventually(t, "its queue is full", func() bool {
		if err := sender.WriteMessage(websocket.BinaryMessage, msg); err != nil {
			t.Fatal(err)
		}
		return r.Stats().DroppedQueue > before+500
	})
}

// TestSlowReaderIsolation: while one node reads nothing, the same sender's packets to another all arrive, and at once.
func TestSlowReaderIsolation(t *testing.T) {
	r := newRelay(t)
	stalled := newNode(r.control)
	stalled.raw(t, r)
	a := newClientOf(t, newNode(r.control), r).waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	flood := newNode(r.control).raw(t, r)
	stall(t, r, flood, stalled.pub)
	var worst time.Duration
	for i := range 500 {
		start := time.Now()
		a.Send(stalled.pub, [][]byte{data(strings.Repeat("y", 1276))})
		a.Send(b.pub, [][]byte{data(fmt.Sprint(i))})
		if got := receive(t, "a packet past the stalled node", b.got); got.data != string(data(fmt.Sprint(i))) {
			t.Fatalf("got %q, want %d", got.data, i)
		}
		worst = max(worst, time.Since(start))
	}
	t.Logf("worst of 500 one-way trips: %v", worst)
	c := r.mesh[key.PublicOf(r.control)].get(stalled.pub)
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	if c.q.bytes > c.q.maxBytes || c.q.packets > c.q.maxPackets {
		t.Errorf("the stalled node's queue has %d packets, %d bytes", c.q.packets, c.q.bytes)
	}
}

func TestKick(t *testing.T) {
	r := newRelay(t)
	n := newNode(r.control)
	ws := n.raw(t, r)
	r.Kick(n.pub)
	if ce := closeOf(t, ws); ce.Code != endKicked.code {
		t.Errorf("a kicked node was told %v", ce)
	}
	var refused *RefusedError
	if _, err := n.tryRaw(r); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		t.Errorf("a kicked node came back: %v", err)
	}
	n.ticket = Ticket{Node: n.pub, Machine: key.PublicOf(n.machine), Issued: time.Now().Add(time.Second), Expires: time.Now().Add(time.Hour)}.Sign(r.control)
	if _, err := n.tryRaw(r); err != nil {
		t.Errorf("a node with a newer ticket: %v", err)
	}
	eventually(t, "it is counted", func() bool { return r.Stats().Kicked == 1 })
}

func TestTicketEndsSession(t *testing.T) {
	r := newRelay(t)
	n := newNode(r.control)
	n.ticket = n.ticketUntil(r.control, time.Now().Add(300*time.Millisecond))
	ws := n.raw(t, r)
	if ce := closeOf(t, ws); ce.Code != endExpired.code {
		t.Errorf("told %v", ce)
	}
	eventually(t, "it is counted", func() bool { return r.Stats().Expired == 1 })
}

// TestTicketRenewal: a client changes to a new link before its ticket ends, and stays up.
func TestTicketRenewal(t *testing.T) {
	r := newRelay(t)
	n := newNode(r.control)
	var mu sync.Mutex
	calls := 0
	a := newClientOf(t, n, r, func(c *ClientConfig, _ *times) {
		c.Ticket = func() []byte {
			mu.Lock()
			defer mu.Unlock()
			if calls++; calls == 1 {
				return n.ticketUntil(r.control, time.Now().Add(time.Second))
			}
			return n.ticketUntil(r.control, time.Now().Add(time.Hour))
		}
	})
	for range 2 {
		if s := receive(t, "status", a.status); !s.up {
			t.Fatalf("down: %v", s.err)
		}
	}
}

func TestDrain(t *testing.T) {
	r := newRelay(t)
	a := newClientOf(t, newNode(r.control), r).waitUp(t)
	left := make(chan int)
	go func() { left <- r.Drain(context.Background()) }()
	if s := receive(t, "the notice", a.status); !s.up || !errors.Is(s.err, ErrDraining) {
		t.Errorf("told %+v", s)
	}
	var refused *RefusedError
	if _, err := newNode(r.control).tryRaw(r); !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable {
		t.Errorf("a draining relay takes clients: %v", err)
	}
	a.Close()
	if n := receive(t, "the end of Drain", left); n != 0 {
		t.Errorf("%d left", n)
	}
	// Bounded: one who stays does not hold it up.
	r2 := newRelay(t)
	newNode(r2.control).raw(t, r2)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if n := r2.Drain(ctx); n != 1 {
		t.Errorf("%d left, want 1", n)
	}
}

func TestCloseIsQuick(t *testing.T) {
	r := newRelay(t)
	stalled := newNode(r.control)
	stalled.raw(t, r)
	stall(t, r, newNode(r.control).raw(t, r), stalled.pub)
	for range 10 {
		newNode(r.control).raw(t, r)
	}
	start := time.Now()
	r.Close()
	if d := time.Since(start); d > lingerTime+writeTimeout/2 { // a second's goodbye, and no waiting for who does not read
		t.Errorf("Close took %v", d)
	}
	if s := r.Stats(); s.Clients != 0 {
		t.Errorf("%d clients after Close", s.Clients)
	}
}

func TestMaxClients(t *testing.T) {
	r := newRelay(t, func(c *ServerConfig) { c.MaxClients = 2 })
	a, b, c := newNode(r.control), newNode(r.control), newNode(r.control)
	a.raw(t, r)
	b.raw(t, r)
	var refused *RefusedError
	if _, err := c.tryRaw(r); !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable {
		t.Errorf("a third client: %v", err)
	}
	a.raw(t, r) // replaces itself
}

// TestMeshesAreApart: nodes of one coordinator reach nodes of another neither by key nor by taking their key.
func TestMeshesAreApart(t *testing.T) {
	second := key.NewControl()
	r := newRelay(t, func(c *ServerConfig) { c.Trust = append(c.Trust, key.PublicOf(second)) })
	a := newClientOf(t, newNode(r.control), r).waitUp(t)
	stranger := newClientOf(t, newNode(second), r).waitUp(t)
	stranger.Send(a.pub, [][]byte{data("hello?")})
	if k := receive(t, "a notice", stranger.gone); k != a.pub {
		t.Errorf("notice about %s", k.Short())
	}
	twin := &node{pub: a.pub, machine: key.NewMachine()}
	twin.ticket = twin.ticketUntil(second, time.Now().Add(time.Hour))
	newClientOf(t, twin, r).waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	b.Send(a.pub, [][]byte{data("hello")})
	if got := receive(t, "a packet", a.got); got.from != b.pub {
		t.Errorf("got %q from %s", got.data, got.from.Short())
	}
	if s := r.Stats(); s.Replaced != 0 {
		t.Error("a node of another mesh took a node's place")
	}
}

func TestRateLimit(t *testing.T) {
	r := newRelay(t, func(c *ServerConfig) { c.Rate, c.Burst = 1, MaxMessage })
	a := newNode(r.control).raw(t, r)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	p := appendPacket(nil, b.pub.Raw(), data(strings.Repeat("x", 1276)))
	const n = 200
	for range n {
		a.WriteMessage(websocket.BinaryMessage, p)
	}
	want := uint64(n - MaxMessage/len(p))
	eventually(t, "all were counted", func() bool { return r.Stats().PacketsIn == n })
	if got := r.Stats().DroppedRate; got != want {
		t.Errorf("%d of %d dropped, want %d", got, n, want)
	}
}

// TestRelayIsBlind: what a relay logs and counts, at its most talkative, has no payload in it and no whole key.
func TestRelayIsBlind(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	r := newRelay(t, func(c *ServerConfig) { c.Log = zerolog.New(lockedWriter{&mu, &log}).Level(zerolog.TraceLevel) })
	a := newClientOf(t, newNode(r.control), r).waitUp(t)
	b := newClientOf(t, newNode(r.control), r).waitUp(t)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	a.Send(b.pub, [][]byte{append(data("open sesame"), every...)})
	if got := receive(t, "a packet", b.got); got.data != "\x04\x00\x00\x00open sesame"+string(every) {
		t.Error("the payload was changed on its way")
	}
	upgrade(t, r, proofScheme+"garbage")
	r.Kick(a.pub)
	eventually(t, "it is gone", func() bool { return r.Stats().Kicked == 1 })
	a.Close()
	b.Close()
	r.stop()
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(log.String(), a.pub.Short()) {
		t.Errorf("the log does not say who came:\n%s", &log)
	}
	for _, secret := range []string{"sesame", a.pub.String()[5:], b.pub.String()[5:], "garbage"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has %q:\n%s", secret, &log)
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func TestTLSIsPinnedAndModern(t *testing.T) {
	r := newRelay(t)
	c, err := tls.Dial("tcp", r.addr, clientTLS(r.pub, "127.0.0.1", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if s := c.ConnectionState(); s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != "http/1.1" {
		t.Errorf("TLS %x, protocol %q", s.Version, s.NegotiatedProtocol)
	}
	old := clientTLS(r.pub, "127.0.0.1", nil)
	old.MaxVersion = tls.VersionTLS12
	if c, err := tls.Dial("tcp", r.addr, old); err == nil {
		c.Close()
		t.Error("the relay speaks TLS 1.2")
	}
}

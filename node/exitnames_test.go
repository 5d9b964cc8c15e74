package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func question(name string, kind dnsmessage.Type) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, RecursionDesired: true})
	b.StartQuestions()
	b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET})
	out, _ := b.Finish()
	return out
}

// book is a resolver of a few names.
func book(_ context.Context, network, host string) (out []netip.Addr, err error) {
	switch host {
	case "site.example.":
		out = addrsOf("203.0.113.5 203.0.113.6 2001:4860::5")
	case "split.example.": // as the exit's network knows it
		out = addrsOf("10.0.0.5 127.0.0.1 169.254.169.254 100.64.0.1 ::1 fd00::1 203.0.113.7 ::ffff:10.0.0.1")
	case "many.example.":
		for i := range 100 {
			out = append(out, netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), netip.MustParseAddr("2001:4860::1"))
		}
	case "broken.example.":
		return nil, &net.DNSError{Err: "server misbehaving", Name: host, IsTemporary: true}
	default:
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	var of []netip.Addr
	for _, a := range out {
		if a.Unmap().Is4() == (network == "ip4") {
			of = append(of, a)
		}
	}
	return of, nil
}

func addrsOf(s string) (out []netip.Addr) {
	for _, f := range strings.Fields(s) {
		out = append(out, netip.MustParseAddr(f))
	}
	return out
}

// An exit tells addresses of the internet, and nothing of the networks around it.
func TestAnswerName(t *testing.T) {
	for _, c := range []struct {
		name string
		kind dnsmessage.Type
		want string // addresses, or how it fails
	}{
		{"site.example.", dnsmessage.TypeA, "203.0.113.5 203.0.113.6"},
		{"site.example.", dnsmessage.TypeAAAA, "2001:4860::5"},
		{"site.example.", dnsmessage.TypeTXT, ""},
		{"site.example.", dnsmessage.TypeALL, ""},
		{"site.example.", dnsmessage.Type(252), ""}, // AXFR
		{"split.example.", dnsmessage.TypeA, "203.0.113.7"},
		{"split.example.", dnsmessage.TypeAAAA, ""},
		{"nobody.example.", dnsmessage.TypeA, ""},
		{"printer.", dnsmessage.TypeA, ""},
		{".", dnsmessage.TypeA, ""},
		{"broken.example.", dnsmessage.TypeA, "RCodeServerFailure"},
	} {
		got := answerName(t.Context(), question(c.name, c.kind), book)
		var m dnsmessage.Message
		if err := m.Unpack(got); err != nil || m.ID != 7 || !m.Response || len(m.Questions) != 1 || m.Questions[0].Name.String() != c.name {
			t.Errorf("%s: %x, %v", c.name, got, err)
			continue
		}
		var say []string
		if m.RCode != dnsmessage.RCodeSuccess {
			say = append(say, m.RCode.String())
		}
		for _, a := range m.Answers {
			switch b := a.Body.(type) {
			case *dnsmessage.AResource:
				say = append(say, netip.AddrFrom4(b.A).String())
			case *dnsmessage.AAAAResource:
				say = append(say, netip.AddrFrom16(b.AAAA).String())
			}
		}
		if got := strings.Join(say, " "); got != c.want {
			t.Errorf("%s %v: %s, want %s", c.name, c.kind, got, c.want)
		}
	}
	two := question("site.example.", dnsmessage.TypeA)
	two = append(two, two[12:]...) // what follows the header is one
	two[5] = 2
	for name, req := range map[string][]byte{
		"nothing": nil, "half a header": make([]byte, 5), "no question": make([]byte, 12), "an answer": answerName(t.Context(), question("site.example.", dnsmessage.TypeA), book),
		"too long": append(question("site.example.", dnsmessage.TypeA), make([]byte, 600)...), "two questions": two,
	} {
		if got := answerName(t.Context(), req, book); got != nil {
			t.Errorf("%s: %x", name, got)
		}
	}
	long := strings.Repeat(strings.Repeat("x", 61)+".", 3)
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		got := answerName(t.Context(), question(long+"many.example.", kind), func(ctx context.Context, network, _ string) ([]netip.Addr, error) {
			return book(ctx, network, "many.example.")
		})
		if len(got) == 0 || len(got) > maxQuestion {
			t.Errorf("an answer of %d bytes", len(got))
		}
	}
}

// Questions that are never answered hold up the others only until there are too many, and end with the flow.
func TestServeNames(t *testing.T) {
	mine, theirs := net.Pipe()
	asking := make(chan struct{}, namesInAll)
	began := make(chan string, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		serveNames(theirs, asking, func(ctx context.Context, network, host string) ([]netip.Addr, error) {
			began <- host
			if host == "site.example." {
				return book(ctx, network, host)
			}
			<-ctx.Done()
			return nil, ctx.Err()
		})
	}()
	for range namesAtOnce - 1 {
		mine.Write(question("silent.example.", dnsmessage.TypeA))
	}
	for range namesAtOnce - 1 {
		receive(t, began, "question")
	}
	mine.SetDeadline(time.Now().Add(10 * time.Second))
	mine.Write(question("site.example.", dnsmessage.TypeA))
	b := make([]byte, 600)
	if n, err := mine.Read(b); err != nil || n < 40 {
		t.Errorf("%d bytes, %v", n, err)
	}

	// No more than these at once, and what is too many is read and dropped.
	if host := receive(t, began, "question that was answered"); host != "site.example." {
		t.Fatalf("%s was looked up", host)
	}
	for last := false; !last; { // the answered one makes room in a moment
		if _, err := mine.Write(question("silent.example.", dnsmessage.TypeA)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-began:
			last = true
		case <-time.After(5 * time.Millisecond):
		}
	}
	for range 3 {
		if _, err := mine.Write(question("more.example.", dnsmessage.TypeA)); err != nil {
			t.Fatalf("with %d questions open no more is read: %v", namesAtOnce, err)
		}
	}
	mine.Close()
	select {
	case <-done:
	case <-time.After(namesTimeout + 5*time.Second):
		t.Fatal("it goes on without its flow")
	}
	if len(asking) != 0 {
		t.Errorf("%d lookups are held for ever", len(asking))
	}
	if len(began) != 0 {
		t.Errorf("%s was looked up beside %d others", <-began, namesAtOnce)
	}

	// Nor more than those of all flows.
	for range cap(asking) {
		asking <- struct{}{}
	}
	mine, theirs = net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		serveNames(theirs, asking, func(context.Context, string, string) ([]netip.Addr, error) {
			if !t.Failed() {
				t.Error("a name is looked up beside as many as may be")
			}
			return nil, nil
		})
	})
	mine.SetDeadline(time.Now().Add(10 * time.Second))
	for range 3 {
		if _, err := mine.Write(question("site.example.", dnsmessage.TypeA)); err != nil {
			t.Errorf("with all lookups under way no question is read: %v", err)
			<-asking // who waits for it may end
			break
		}
	}
	mine.Close()
	wg.Wait()
}

// F-dns: whatever is asked, there is an answer to it of at most 512 bytes, or none.
func FuzzName(f *testing.F) {
	f.Add(question("site.example.", dnsmessage.TypeA))
	f.Add(question("split.example.", dnsmessage.TypeAAAA))
	f.Add(question(".", dnsmessage.TypeALL))
	find := func(_ context.Context, network, host string) ([]netip.Addr, error) {
		if !strings.HasSuffix(host, ".") {
			return nil, errors.New("a search list would be used")
		}
		return addrsOf("203.0.113.7 10.0.0.1 2001:4860::5 fd00::1"), nil
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := answerName(t.Context(), b, find)
		if got == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(got); err != nil || len(got) > maxQuestion || !m.Response || m.ID != uint16(b[0])<<8|uint16(b[1]) || len(m.Answers) > 2 {
			t.Fatalf("to %x: %x, %v", b, got, err)
		}
		if m.RCode == dnsmessage.RCodeServerFailure {
			t.Fatalf("%x was looked up with a search list", b)
		}
	})
}

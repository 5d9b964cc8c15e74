// Package kid is processes of this same program that do one job for it, and end when it ends, whichever way that is.
//
//	parent ── stdin: a request a line of JSON ──▶ kid      the end of stdin is the end of the kid
//	       ◀─ stdout: an answer a line of JSON ──          the first says that it is ready
//
// A program that has kids calls Main first of all.
package kid

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// env is the variable that makes a process a kid: it holds the job's name.
const env = "HEDGE_BENCH_KID"

// grace is how long a kid may take to end once its parent has.
var grace = 5 * time.Second

// Main is the job, and ends the process, if this process is a kid; otherwise it returns at once.
func Main(jobs map[string]func(args []string) error) {
	name := os.Getenv(env)
	if name == "" {
		return
	}
	os.Unsetenv(env) // a kid's own children are what they are
	job, ok := jobs[name]
	err := fmt.Errorf("no job is called %q", name)
	if ok {
		err = job(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench, %s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// message is an answer, or why there is none.
type message[A any] struct {
	Answer A      `json:"answer"`
	Error  string `json:"error,omitempty"`
}

// Serve says ready, and then answers requests until there are no more. A request under way when the parent ends has a few
// seconds to be done; then the process ends.
func Serve[Q, A any](ready A, do func(Q) (A, error)) error {
	over := make(chan struct{})
	defer close(over)
	return serve(os.Stdin, os.Stdout, ready, do, func() {
		select {
		case <-over:
		case <-time.After(grace):
			os.Exit(1)
		}
	})
}

func serve[Q, A any](in io.Reader, out io.Writer, ready A, do func(Q) (A, error), orphaned func()) error {
	requests, failed := make(chan Q), make(chan error, 1)
	go func() {
		defer close(requests)
		for dec := json.NewDecoder(in); ; {
			var q Q
			if err := dec.Decode(&q); err != nil {
				if !errors.Is(err, io.EOF) {
					failed <- err
				}
				go orphaned()
				return
			}
			requests <- q
		}
	}()
	enc := json.NewEncoder(out)
	if err := enc.Encode(message[A]{Answer: ready}); err != nil {
		return err
	}
	for q := range requests {
		var m message[A]
		var err error
		if m.Answer, err = do(q); err != nil {
			m.Error = err.Error()
		}
		if err := enc.Encode(m); err != nil {
			return err
		}
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// Kid is a kid as its parent sees it. Its requests are of type Q and its answers of type A.
type Kid[Q, A any] struct {
	Ready A // its first answer
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *json.Decoder
	stop  func() bool // forgets the context
}

// Start runs a job of this program in a process of its own, behind the words of wrap if there are any (as in "ip netns exec
// NAME"), and waits until it is ready. The end of ctx ends it.
func Start[Q, A any](ctx context.Context, job string, wrap []string, args ...string) (*Kid[Q, A], error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return Run[Q, A](ctx, self, job, wrap, args...)
}

// Run is Start with a job of another build of this program.
func Run[Q, A any](ctx context.Context, program, job string, wrap []string, args ...string) (*Kid[Q, A], error) {
	words := append(append(wrap[:len(wrap):len(wrap)], program), args...)
	k := &Kid[Q, A]{cmd: exec.Command(words[0], words[1:]...)}
	k.cmd.Env = append(os.Environ(), env+"="+job)
	k.cmd.Stderr = os.Stderr
	k.cmd.SysProcAttr = apart()
	var err error
	if k.in, err = k.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	k.out = json.NewDecoder(out)
	if err := k.cmd.Start(); err != nil {
		return nil, err
	}
	k.stop = context.AfterFunc(ctx, func() { _ = k.in.Close() })
	if k.Ready, err = k.next(); err != nil {
		k.Stop()
		return nil, fmt.Errorf("%s did not come up: %w", job, err)
	}
	return k, nil
}

// Ask sends a request and waits for its answer.
func (k *Kid[Q, A]) Ask(q Q) (A, error) {
	if err := json.NewEncoder(k.in).Encode(q); err != nil {
		var none A
		return none, err
	}
	return k.next()
}

func (k *Kid[Q, A]) next() (A, error) {
	var m message[A]
	if err := k.out.Decode(&m); err != nil {
		return m.Answer, fmt.Errorf("the process ended: %w", err)
	}
	if m.Error != "" {
		return m.Answer, errors.New(m.Error)
	}
	return m.Answer, nil
}

// PID is the process ID, of the first of the words that wrap it if those do not become it.
func (k *Kid[Q, A]) PID() int { return k.cmd.Process.Pid }

// Stop ends the kid, and waits until it has.
func (k *Kid[Q, A]) Stop() {
	k.stop()
	_ = k.in.Close()
	_ = k.cmd.Wait()
}

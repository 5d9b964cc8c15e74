package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// A daemon in the background is this binary again, with --notify:
//
//	hedge up                              hedge node --notify
//	   │ start, own session                  │ claims run/node.pid
//	   ├── stdin: the join string ──────────▶│ (never in argv)
//	   │                                     │ … joins
//	   │◀── stdout: one notice ──────────────┤ ready, or the failure with its exit code
//	   ▼ returns                             │ stderr: the log file
//
// So a failure in the background is reported word for word in the foreground, and nobody polls.

// notice is the one line a daemon writes on its stdout once it is ready or has failed.
type notice struct {
	failure
	Ready any `json:"ready,omitempty"`
}

// ready tells whoever started this process in the background that it is ready.
func (a *app) ready(v any) {
	if a.notify {
		json.NewEncoder(a.stdout).Encode(notice{Ready: v})
		a.notify = false // nobody reads there any more, and a write would end this process
		if s := reloadSignals(); len(s) > 0 {
			signal.Ignore(s...) // a coordinator listens for them later; a node has nothing to read again
		}
	}
}

// notifyFlag is the flag of the daemons by which [app.start] starts them.
func (a *app) notifyFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.notify, "notify", false, "report on stdout, once, for the process that started this one")
	cmd.Flags().MarkHidden("notify")
}

// claim makes this process the one daemon of its kind: it holds a lock on the pid file for as long as it lives.
func claim(path, what string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, failed(fmt.Errorf("cannot write %s: %w", path, reason(err)), "make its folder writable for this user, or choose another with --state-dir DIR")
	}
	for lockFile(f) != nil {
		pid, held := holder(path)
		if !held {
			continue // someone was only looking
		}
		f.Close()
		return nil, failed(fmt.Errorf("a %s is already running here (process %d)", what, pid), "hedge status shows it; hedge down stops the node, hedge down --all the coordinator too")
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, failed(fmt.Errorf("cannot write %s: %w", path, reason(err)), "")
	}
	return func() { f.Close() }, nil
}

// holder returns the process that claims path, if one does.
func holder(path string) (pid int, ok bool) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if lockFile(f) == nil {
		return 0, false // nobody has it: what it says is of a process that is gone
	}
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err = strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid, err == nil && pid > 0
}

// halt asks the process that claims path to end, and returns once it has: false if there was none.
func halt(ctx context.Context, path string) (bool, error) {
	pid, ok := holder(path)
	if !ok {
		return false, nil
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		err = terminate(p)
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return false, failed(fmt.Errorf("cannot stop process %d: %w", pid, err), "run this as the user that started it")
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, ok := holder(path); !ok {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, failed(fmt.Errorf("process %d was asked to stop and has not", pid), fmt.Sprintf("its log may say why; kill -9 %d ends it", pid))
		case <-tick.C:
		}
	}
}

// start runs a daemon in the background and returns once it is ready. Its failure comes back as it was there.
func (a *app) start(ctx context.Context, d dirs, daemon string, args []string, stdin string, ready any) error {
	if err := d.make(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	logFile := d.log(daemon)
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return failed(fmt.Errorf("cannot write the log %s: %w", logFile, reason(err)), "make its folder writable for this user, or choose another with --state-dir DIR")
	}
	defer log.Close()

	cmd := exec.Command(self, append([]string{daemon, "--notify"}, args...)...) // not bound to ctx: it outlives us
	cmd.Args[0] = "hedge"
	cmd.Dir = string(filepath.Separator)
	cmd.Env = withoutSecrets(os.Environ())
	cmd.Stderr = log
	cmd.SysProcAttr = ownSession()
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin + "\n")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Stdout = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start hedge %s: %w", daemon, err)
	}
	line := make(chan []byte, 1)
	go func() { // ends with the first line, with the daemon, or with r.Close
		b, _ := bufio.NewReaderSize(r, 64<<10).ReadBytes('\n')
		line <- b
	}()
	select {
	case b := <-line:
		return a.started(cmd, daemon, logFile, b, ready)
	case <-ctx.Done():
		terminate(cmd.Process)
		cmd.Wait()
		return ctx.Err()
	}
}

// started reads the daemon's notice.
func (a *app) started(cmd *exec.Cmd, daemon, logFile string, b []byte, ready any) error {
	n := notice{Ready: ready}
	if len(b) == 0 || json.Unmarshal(b, &n) != nil {
		err := cmd.Wait()
		return failed(fmt.Errorf("hedge %s ended before it was ready: %w", daemon, err), "its log says why: "+logFile)
	}
	if n.Code != exitOK {
		cmd.Wait()
		if len(n.Errors) > 0 {
			return &fault{n.Code, n.Errors, n.Next}
		}
		return &fault{n.Code, errors.New(n.Error), n.Next}
	}
	return cmd.Process.Release()
}

// withoutSecrets is env less what must not live on in a process that others may look at.
func withoutSecrets(env []string) []string {
	var keep []string
	for _, e := range env {
		if !strings.HasPrefix(e, "HEDGE_JOIN=") && !strings.HasPrefix(e, "HEDGE_JSON=") {
			keep = append(keep, e)
		}
	}
	return keep
}

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hedge": main})
}

// TestScripts runs testdata/script/*.txtar: each is a person at a shell, on loopback, with folders of their own.
//
//	code N hedge …        runs hedge and wants exit code N
//	freeport VAR          sets VAR to a port that nobody listens on
//	occupy VAR            listens on a port for the length of the script, and sets VAR to it
//	web VAR TEXT          serves TEXT by HTTP on a port of 127.0.0.1, and sets VAR to it
//	field VAR NAME        sets VAR to the field NAME ("a.b") of the JSON on stdout
//	fetch PROXY URL       gets URL through the SOCKS5 proxy, or with - without one, onto stdout
//	envfile VAR FILE      sets VAR to what FILE holds
//	daemon VAR hedge …    starts hedge, sets VAR to the line it prints when it is ready, and stops it at the end
//	await N hedge …       runs hedge until its exit code is N
//	awaitlog RE FILE      waits until FILE has what matches RE
//	awaitout RE hedge …   runs hedge until it prints what matches RE
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "freeport": freeport, "occupy": occupy, "web": web, "field": field, "fetch": fetch,
			"envfile": envfile, "daemon": daemon, "await": awaitCode, "awaitout": awaitOut, "awaitlog": awaitLog,
		},
		Condition: func(c string) (bool, error) {
			if c == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", c)
		},
	})
}

// setup gives a script an environment without what the person running the tests has set, and stops what it started.
func setup(env *testscript.Env) error {
	for i, v := range env.Vars {
		if strings.HasPrefix(v, "HEDGE_") {
			env.Vars[i] = "_="
		}
	}
	// A socket's path may have about a hundred bytes, and a script's folder is half of that.
	dir, err := os.MkdirTemp("", "hedge")
	if err != nil {
		return err
	}
	env.Setenv("D", dir)
	env.Setenv("HEDGE_STATE_DIR", filepath.Join(dir, "a"))
	env.Setenv("HEDGE_PROXY", "127.0.0.1:0")
	env.Setenv("HEDGE_PORT_MAPPING", "off") // the gateway of the machine that tests run on is not ours
	env.Setenv("HOME", dir)
	env.Defer(func() {
		stopAll(dir)
		os.RemoveAll(dir)
	})
	return nil
}

// stopAll stops every daemon that has its state under dir.
func stopAll(dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Base(path) == "run" && d.IsDir() {
			a := &app{stateDir: filepath.Dir(path)}
			a.down(ctx, true)
		}
		return nil
	})
}

func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := exitCode(ts, args[1:]); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func exitCode(ts *testscript.TestScript, args []string) int {
	err := ts.Exec(args[0], args[1:]...)
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	ts.Check(err)
	return 0
}

func awaitCode(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	poll(ts, func() bool { return exitCode(ts, args[1:]) == want })
}

func awaitOut(ts *testscript.TestScript, neg bool, args []string) {
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	poll(ts, func() bool { return exitCode(ts, args[1:]) == 0 && re.MatchString(ts.ReadFile("stdout")) })
}

func awaitLog(ts *testscript.TestScript, neg bool, args []string) {
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	poll(ts, func() bool { return re.MatchString(ts.ReadFile(args[1])) })
}

// poll asks again and again: what a command shows is a matter of other processes.
func poll(ts *testscript.TestScript, done func() bool) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(15 * time.Second); !done(); <-tick.C {
		if time.Now().After(end) {
			ts.Fatalf("it never came")
		}
	}
}

func envfile(ts *testscript.TestScript, neg bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

func daemon(ts *testscript.TestScript, neg bool, args []string) {
	path, err := exec.LookPath(args[1])
	ts.Check(err)
	cmd := exec.Command(path, args[2:]...)
	cmd.Dir = ts.Getenv("WORK")
	for _, v := range []string{"HOME", "HEDGE_STATE_DIR", "HEDGE_PROXY", "HEDGE_PORT_MAPPING", "HEDGE_JOIN", "PATH"} {
		cmd.Env = append(cmd.Env, v+"="+ts.Getenv(v))
	}
	log, err := os.Create(filepath.Join(ts.Getenv("D"), filepath.Base(args[1])+"-"+args[2]+".log"))
	ts.Check(err)
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		terminate(cmd.Process)
		cmd.Wait()
		log.Close()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b, _ := os.ReadFile(log.Name())
		ts.Fatalf("%s ended before it was ready: %s", args[2], b)
	}
	if args[0] != "-" {
		ts.Setenv(args[0], strings.TrimSpace(line))
	}
}

func freeport(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(int(port(l.Addr()))))
	ts.Check(l.Close())
}

func occupy(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], strconv.Itoa(int(port(l.Addr()))))
}

func web(ts *testscript.TestScript, neg bool, args []string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, args[1]) }))
	ts.Defer(s.Close)
	ts.Setenv(args[0], strconv.Itoa(int(port(s.Listener.Addr()))))
}

func field(ts *testscript.TestScript, neg bool, args []string) {
	v, err := jsonField([]byte(ts.ReadFile("stdout")), args[1])
	ts.Check(err)
	ts.Setenv(args[0], v)
}

func fetch(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	body, err := get(ctx, args[0], args[1])
	switch {
	case err == nil && neg:
		ts.Fatalf("%s answered: %s", args[1], body)
	case err != nil && !neg:
		ts.Fatalf("%s: %v", args[1], err)
	case err != nil:
		ts.Logf("%v", err)
	}
	fmt.Fprint(ts.Stdout(), body)
}

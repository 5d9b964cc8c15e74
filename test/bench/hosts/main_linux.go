package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

type options struct {
	rounds, rules, mtu          int
	time                        time.Duration
	json, baselines, only, echo string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "how often each measurement is made")
	flag.DurationVar(&o.time, "time", 3*time.Second, "how long each takes")
	flag.IntVar(&o.rules, "rules", 1000, "rules of Hedge's policy that concern both nodes")
	flag.IntVar(&o.mtu, "mtu", 1500, "of the wire between the hosts")
	flag.StringVar(&o.json, "json", "", "write every figure to `FILE` as JSON")
	flag.StringVar(&o.baselines, "baselines", "", "`FILE` of other tunnels to measure beside (see the package's documentation)")
	flag.StringVar(&o.only, "only", "", "only these worlds, `NAME,…`; the first is compared with the others")
	flag.StringVar(&o.echo, "request", "", "be the program that sends or answers small requests: `ADDR`, or listen:ADDR")
	flag.Parse()
	run := work
	if o.echo != "" {
		run = request
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "hosts:", err)
		os.Exit(1)
	}
}

func work(o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root, for network namespaces")
	}
	for _, tool := range []string{"ip", "iperf3"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("needs %s", tool)
		}
	}
	dir, err := os.MkdirTemp("", "hedge-hosts")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	worlds, err := choose(o, dir)
	if err != nil {
		return err
	}
	for i, w := range worlds {
		if w.pair, err = newPair(i, o.mtu); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		defer w.close()
		w.dir = filepath.Join(dir, w.name)
		if err := os.Mkdir(w.dir, 0o700); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s comes up\n", w.name)
		if err := w.start(w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		if err := w.serve(); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	rep := &report{Go: runtime.Version(), Cores: runtime.NumCPU(), Rules: o.rules, MTU: o.mtu}
	for _, w := range worlds {
		rep.Worlds = append(rep.Worlds, w.name)
	}
	if err := rep.measure(o, worlds); err != nil {
		return err
	}
	rep.compare()
	rep.print(os.Stdout)
	if o.json == "" {
		return nil
	}
	b, err := json.MarshalIndent(rep, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(b, '\n'), 0o644)
}

// choose lists the worlds that are asked for and can be had. The first one is compared with the others.
func choose(o options, dir string) ([]*world, error) {
	bin := func(name, pkg string) (string, error) {
		out := filepath.Join(dir, name)
		b, err := exec.Command("go", "build", "-trimpath", "-o", out, pkg).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", pkg, err, b)
		}
		return out, nil
	}
	hedge, err := bin("hedge-bin", "./cmd/hedge")
	if err != nil {
		return nil, err
	}
	wg, err := bin("wireguard-bin", "golang.zx2c4.com/wireguard")
	if err != nil {
		return nil, err
	}
	all := []*world{
		{name: "hedge-tun", start: startHedge(hedge, o.rules, true)},
		{name: "wireguard-go", start: startWireGuard(wg)},
		{name: "veth", start: func(w *world) error { w.address = addrB; return nil }},
	}
	if _, err := exec.LookPath("proxychains4"); err == nil {
		all = slices.Insert(all, 1, &world{name: "hedge", start: startHedge(hedge, o.rules, false)})
	} else {
		fmt.Fprintln(os.Stderr, "without hedge as a program without rights: needs proxychains4")
	}
	if o.baselines != "" {
		more, err := readBaselines(o.baselines)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	if o.only == "" {
		return all, nil
	}
	var out []*world
	for _, name := range strings.Split(o.only, ",") {
		i := slices.IndexFunc(all, func(w *world) bool { return w.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no world is called %q", name)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// measure makes every measurement in every world of every round.
func (r *report) measure(o options, worlds []*world) error {
	for _, w := range worlds {
		r.put(w.name, "memory, idle, both ends", "MB", w.memory())
	}
	for round := range o.rounds {
		for t, task := range tasks {
			for i := range worlds {
				w := worlds[(i+round+t)%len(worlds)]
				fmt.Fprintf(os.Stderr, "\rround %d of %d: %-32s %-16s", round+1, o.rounds, task.name, w.name)
				if task.kernel && w.socks != "" {
					continue
				}
				if err := task.run(r, w, task.name, o.time); err != nil {
					return fmt.Errorf("%s of %s: %w", task.name, w.name, err)
				}
			}
		}
	}
	fmt.Fprintf(os.Stderr, "\r%-70s\rwaiting half a minute, to see what memory is given back\n", "")
	time.Sleep(40 * time.Second)
	for _, w := range worlds {
		r.put(w.name, "memory, 40 s after, both ends", "MB", w.memory())
	}
	return nil
}

// baseline is what a file says of another tunnel.
type baseline struct {
	Name    string `json:"name"`
	Up      string `json:"up"`
	Down    string `json:"down"`
	Address string `json:"address"`
}

func readBaselines(file string) ([]*world, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []baseline
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var out []*world
	for i, x := range list {
		if x.Name == "" || x.Up == "" || x.Address == "" {
			return nil, fmt.Errorf("%s: entry %d needs a name, up and address", file, i+1)
		}
		out = append(out, &world{name: x.Name, start: func(w *world) error {
			w.ends = append(w.ends, func() { _ = w.shell(cmp.Or(x.Down, "true")).Run() })
			if out, err := w.shell(x.Up).CombinedOutput(); err != nil {
				return fmt.Errorf("up: %w\n%s", err, out)
			}
			w.address = x.Address
			if command, ok := strings.CutPrefix(x.Address, "$"); ok {
				out, err := w.shell(command).Output()
				if err != nil {
					return fmt.Errorf("address: %w", err)
				}
				w.address = strings.TrimSpace(string(out))
			}
			return w.reachable()
		}})
	}
	return out, nil
}

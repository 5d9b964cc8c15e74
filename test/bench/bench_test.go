package main

import "testing"

// TestWorlds makes each measurement once and shortly, so that the bench works when it is wanted.
func TestWorlds(t *testing.T) {
	if testing.Short() {
		t.Skip("starts whole nodes")
	}
	for _, name := range worlds {
		t.Run(name, func(t *testing.T) {
			w, err := open(options{world: name, rules: 10})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			b := &bench{w: w}
			if err := b.serve(); err != nil {
				t.Fatal(err)
			}
			for _, task := range tasks {
				r := task.Request
				r.MS = 20
				a, err := b.do(r)
				if err != nil || r.Test == "tcp" && a.Gbit <= 0 || r.Test == "rtt" && a.P50 <= 0 {
					t.Errorf("%s: %+v, %v", task.Name, a, err)
				}
			}
		})
	}
}

func TestCompare(t *testing.T) {
	r := new(report)
	for _, v := range []float64{4, 6, 9} {
		r.put("hedge", "tcp", "Gbit/s", v)
		r.put("wireguard", "tcp", "Gbit/s", 2)
		r.put("stack", "tcp", "Gbit/s", v)
	}
	r.compare()
	want := []ratio{{"tcp", "wireguard", 2, 3, 4.5}, {"tcp", "stack", 1, 1, 1}}
	if len(r.Ratios) != 2 || r.Ratios[0] != want[0] || r.Ratios[1] != want[1] {
		t.Errorf("%+v, want %+v", r.Ratios, want)
	}
}

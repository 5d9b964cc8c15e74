package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
)

// request is what the parent asks a child for; answer is what it gets. One line of JSON each.
type request struct {
	Test    string `json:"test"`              // "tcp", "rtt" or "mem"
	Streams int    `json:"streams,omitempty"` // bulk streams; beside the requests of "rtt"
	Back    bool   `json:"back,omitempty"`    // the listener sends
	MS      int    `json:"ms,omitempty"`      // milliseconds, after a quarter as long to warm up
}

type answer struct {
	Error  string  `json:"error,omitempty"`
	Gbit   float64 `json:"gbit,omitempty"`   // gigabits of payload a second
	CPU    float64 `json:"cpu,omitempty"`    // seconds for a gigabyte, both ends
	Allocs float64 `json:"allocs,omitempty"` // objects for a full packet (1,240 bytes of payload), both ends
	P50    float64 `json:"p50,omitempty"`    // microseconds
	P99    float64 `json:"p99,omitempty"`
	RSS    float64 `json:"rss,omitempty"` // megabytes, of the process
}

// kid is a child as the parent sees it.
type kid struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func startKid(world string, rules int) (*kid, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	k := &kid{cmd: exec.Command(self, "-world", world, "-rules", strconv.Itoa(rules))}
	k.cmd.Stderr = os.Stderr
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
	var ready answer
	if err := k.out.Decode(&ready); err != nil {
		k.stop()
		return nil, errors.New("it did not come up")
	}
	return k, nil
}

func (k *kid) ask(r request) (answer, error) {
	if err := json.NewEncoder(k.in).Encode(r); err != nil {
		return answer{}, err
	}
	var a answer
	if err := k.out.Decode(&a); err != nil {
		return answer{}, fmt.Errorf("the child ended: %w", err)
	}
	if a.Error != "" {
		return answer{}, errors.New(a.Error)
	}
	return a, nil
}

// stop ends the child by the end of its input, and waits.
func (k *kid) stop() {
	k.in.Close()
	_ = k.cmd.Wait()
}

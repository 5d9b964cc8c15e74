package hosts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// iperf is what is needed of iperf3's JSON.
type iperf struct {
	Error     string `json:"error"`
	Intervals []struct {
		Sum struct {
			Bytes float64 `json:"bytes"`
		} `json:"sum"`
	} `json:"intervals"`
	End struct {
		Received struct {
			Bits float64 `json:"bits_per_second"`
		} `json:"sum_received"`
		Sum struct { // of UDP
			Seconds float64 `json:"seconds"`
			Packets float64 `json:"packets"`
			Lost    float64 `json:"lost_packets"`
		} `json:"sum"`
	} `json:"end"`
}

// errBusy is what a server says while it still ends the test before.
var errBusy = errors.New("the server is busy running a test")

// parseIperf reads what iperf3 -J has printed. Other programs' lines before that are passed over.
func parseIperf(out []byte) (r iperf, err error) {
	i := bytes.IndexByte(out, '{')
	if i < 0 {
		return r, fmt.Errorf("iperf3 printed no JSON: %q", out[:min(len(out), 200)])
	}
	if err := json.Unmarshal(out[i:], &r); err != nil {
		return r, fmt.Errorf("iperf3's JSON: %w", err)
	}
	if r.Error != "" {
		if bytes.Contains([]byte(r.Error), []byte("busy")) {
			return r, errBusy
		}
		return r, errors.New("iperf3: " + r.Error)
	}
	return r, nil
}

// gbit is what arrived of streams, a second, after the warming up.
func (r iperf) gbit() (float64, error) {
	if r.End.Received.Bits <= 0 {
		return 0, errors.New("iperf3 received nothing")
	}
	return r.End.Received.Bits / 1e9, nil
}

// bytes is all that was sent, or received with -R, from first to last.
func (r iperf) bytes() (n float64) {
	for _, i := range r.Intervals {
		n += i.Sum.Bytes
	}
	return n
}

// datagrams says how many arrived a second, and how many percent were lost.
func (r iperf) datagrams() (arrived, lost float64, err error) {
	s := r.End.Sum
	if s.Packets <= 0 || s.Seconds <= 0 {
		return 0, 0, errors.New("iperf3 counted no packets")
	}
	return (s.Packets - s.Lost) / s.Seconds, 100 * s.Lost / s.Packets, nil
}

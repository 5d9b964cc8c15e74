package bind

import (
	"testing"
	"time"

	"github.com/hedge-mesh/hedge/test/lab"
)

// The system tells of an address at once, and the watch ends.
func TestWatch(t *testing.T) {
	h := lab.New(t).Host("a")
	told := make(chan struct{}, 1)
	var stop func()
	err := h.Do(func() (err error) {
		stop, err = watchSystem(func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, change := range []string{"add", "del"} {
		for len(told) > 0 {
			<-told
		}
		if out, err := h.Command(t.Context(), "ip", "addr", change, "10.77.0.99/24", "dev", "eth0").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		select {
		case <-told:
		case <-time.After(5 * time.Second):
			t.Errorf("addr %s: not told in 5 s", change)
		}
	}
}

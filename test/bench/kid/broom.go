package kid

import (
	"context"
	"os"
	"time"
)

// Jobs are what kids of this package do: "broom" removes a folder once its parent has ended.
var Jobs = map[string]func([]string) error{"broom": sweep}

// Broom makes a temporary folder and has one kid remove it, whichever way this process ends. The function it returns ends
// that kid, and waits until the folder is gone.
func Broom(ctx context.Context) (dir string, stop func(), err error) {
	if dir, err = os.MkdirTemp("", "hedge-bench"); err != nil {
		return "", nil, err
	}
	// Not ended by ctx: what follows an interrupt still needs the folder.
	k, err := Start[struct{}, struct{}](context.WithoutCancel(ctx), "broom", nil, dir)
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, k.Stop, nil
}

func sweep(args []string) error {
	err := Serve(struct{}{}, func(struct{}) (struct{}, error) { return struct{}{}, nil })
	for end := time.Now().Add(2 * grace); ; time.Sleep(100 * time.Millisecond) { // other kids may be ending still, and write there
		if rerr := os.RemoveAll(args[0]); rerr == nil || time.Now().After(end) {
			return err
		}
	}
}

package report

import (
	"context"
	"fmt"
	"time"
)

// Settle waits for so long, to see what memory is given back, and then calls measure with a name for that moment. Zero is
// not to look. It fails only when ctx is done before.
func Settle(ctx context.Context, d time.Duration, say func(format string, args ...any), measure func(when string)) error {
	if d <= 0 {
		return nil
	}
	say("waiting %v, to see what memory is given back", d)
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return ctx.Err()
	}
	measure(fmt.Sprintf("%v after", d))
	return nil
}

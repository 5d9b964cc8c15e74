package netstack

import (
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// silent takes what gVisor says on standard error: warnings of connections that end before they are accepted, which is
// everyday, and nothing to show to whoever runs a node.
type silent struct{}

func (silent) Emit(int, log.Level, time.Time, string, ...any) {}

func init() { log.SetTarget(silent{}) }

//go:build !linux

package hosts

import (
	"context"
	"errors"
	"time"

	"github.com/hedge-mesh/hedge/test/bench/report"
)

const upTime = 30 * time.Second // for a world to come up

var errOther = errors.New("needs the network namespaces of Linux")

// Missing says why nothing can be measured here.
func Missing() error { return errOther }

// Lacks says why a world cannot be measured here.
func Lacks(string) error { return errOther }

// CongestionControl is unknown.
func CongestionControl() string { return "" }

// Measure measures nothing.
func Measure(context.Context, *report.Report, Options) error { return errOther }

func janitor([]string) error { return errOther }

//go:build !unix

package device

import "time"

func processor() time.Duration { return 0 }

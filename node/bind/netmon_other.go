//go:build !linux

package bind

import "errors"

// watchSystem is not to be had here: addresses are polled.
func watchSystem(func()) (func(), error) { return nil, errors.ErrUnsupported }

//go:build !linux && !darwin && !windows

package ostun

import "errors"

// DefaultName is the interface's name unless told otherwise.
const DefaultName = "tun0"

const needs = ""

func open(Options) (*Device, error) {
	return nil, errors.New("no network interface can be made on this operating system yet")
}

func command(string, op) ([][]string, error) { return nil, errRules }

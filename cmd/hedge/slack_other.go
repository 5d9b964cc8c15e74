//go:build !linux

package main

import "time"

// slacken is for Linux.
func slacken([]string) {}

// keenSlack and hasten are, too.
const keenSlack = 0

func hasten(time.Duration) {}

//go:build !linux

package main

// slacken is for Linux.
func slacken([]string) {}

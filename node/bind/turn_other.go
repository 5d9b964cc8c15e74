//go:build !linux

package bind

// giveWay does nothing: only where there is a companion is it worth it.
func giveWay() {}

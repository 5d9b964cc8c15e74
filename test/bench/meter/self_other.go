//go:build !unix

package meter

func self() float64 { return 0 }

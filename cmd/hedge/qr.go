package main

import (
	"fmt"
	"io"

	"rsc.io/qr"
)

// showQR draws text as a QR code, two modules a character, with the border that scanners want. Light modules are
// drawn, so that it scans on a dark terminal; most scanners read it inverted too.
func showQR(w io.Writer, text string) error {
	const border = 2
	c, err := qr.Encode(text, qr.L)
	if err != nil {
		return fmt.Errorf("draw a QR code: %w", err)
	}
	light := func(x, y int) bool { return !c.Black(x, y) } // outside the code, too
	for y := -border; y < c.Size+border; y += 2 {
		for x := -border; x < c.Size+border; x++ {
			half := " "
			switch top, bottom := light(x, y), light(x, y+1); {
			case top && bottom:
				half = "█"
			case top:
				half = "▀"
			case bottom:
				half = "▄"
			}
			fmt.Fprint(w, half)
		}
		fmt.Fprintln(w)
	}
	return nil
}

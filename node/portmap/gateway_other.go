//go:build !linux

package portmap

import "errors"

// systemGateway finds none: where there is no table to read, no gateway is guessed.
func systemGateway() (Gateway, error) {
	return Gateway{}, errors.New("the gateway is not known on this system")
}

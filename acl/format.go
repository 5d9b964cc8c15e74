package acl

import "github.com/tailscale/hujson"

// Format writes a policy file in its usual layout, comments and all. The error is as of [Parse], for syntax only.
func Format(file string, src []byte) ([]byte, error) {
	p := newParser(file, src, Options{})
	if _, ok := p.parse(); !ok || len(p.errs) > 0 {
		return nil, p.result()
	}
	return hujson.Format(src)
}

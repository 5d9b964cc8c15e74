package process

import (
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// cipher returns how many gigabits a second one core seals, and opens, in packets of size bytes.
func cipher(size int, d time.Duration) (seal, open float64) {
	aead, err := chacha20poly1305.New(make([]byte, chacha20poly1305.KeySize))
	if err != nil {
		panic(err) // the key has the size it must have
	}
	nonce := make([]byte, chacha20poly1305.NonceSize)
	plain := make([]byte, size)
	sealed := aead.Seal(nil, nonce, plain, nil)
	out := make([]byte, 0, len(sealed))
	rate := func(f func()) float64 {
		n, t0 := 0, time.Now()
		for time.Since(t0) < d {
			for range 64 {
				f()
			}
			n += 64
		}
		return float64(n) * float64(size) * 8 / 1e9 / time.Since(t0).Seconds()
	}
	return rate(func() { aead.Seal(out, nonce, plain, nil) }), rate(func() {
		if _, err := aead.Open(out, nonce, sealed, nil); err != nil {
			panic(err) // we have sealed it
		}
	})
}

package key

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Certificate makes a self-signed X.509 certificate of the key, for TLS between ends that pin each other's keys.
// Nothing in it but the key means anything, so its dates span all time and its serial number is fixed.
func Certificate[K signer](p Private[K]) (tls.Certificate, error) {
	var z K
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "hedge " + z.name()},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 section 4.1.2.5: no end
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	k := Ed25519(p)
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("key: make %s certificate: %w", z.name(), err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, nil
}

// FromCertificate returns the key that a TLS peer has proven to hold: that of the first certificate it sent.
func FromCertificate[K signer](certs []*x509.Certificate) (Public[K], error) {
	if len(certs) == 0 {
		return Public[K]{}, errors.New("key: the other end sent no certificate")
	}
	k, ok := certs[0].PublicKey.(ed25519.PublicKey)
	if !ok || len(k) != Size {
		return Public[K]{}, fmt.Errorf("key: the other end's certificate has a %T, want Ed25519", certs[0].PublicKey)
	}
	return PublicFrom32[K]([Size]byte(k)), nil
}

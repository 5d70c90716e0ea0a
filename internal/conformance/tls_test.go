package conformance

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"os"
	"sync"
	"testing"
	"time"
)

// tlsConfigs makes a certificate and returns what a server and a client that
// trusts it need.
func tlsConfigs(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	const name = "unix.test"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		DNSNames:              []string{name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	server = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	client = &tls.Config{RootCAs: roots, ServerName: name}
	return server, client
}

// tlsPair returns the two ends of a TLS connection over n, the server's first.
func tlsPair(t *testing.T, n network) (server, client *tls.Conn) {
	t.Helper()
	serverConfig, clientConfig := tlsConfigs(t)
	c, s, err := meet(n.dial, n.listener.Accept)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	server, client = tls.Server(s, serverConfig), tls.Client(c, clientConfig)
	shake := make(chan error, 1)
	go func() { shake <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-shake); err != nil {
		t.Fatal(err)
	}
	return server, client
}

func TestTLSEchoes(t *testing.T) {
	data := noise(2<<20 + 1)
	eachNetwork(t, func(t *testing.T, n network) {
		server, client := tlsPair(t, n)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			if _, err := io.Copy(server, server); err != nil {
				t.Errorf("the server: %v", err)
			}
			server.CloseWrite()
		})
		wg.Go(func() {
			if _, err := client.Write(data); err != nil {
				t.Errorf("the client: %v", err)
			}
			client.CloseWrite()
		})
		got, err := io.ReadAll(client)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes came back of %d, or others: %v", len(got), len(data), err)
		}
	})
}

func TestTLSReadMeetsDeadline(t *testing.T) {
	eachNetwork(t, func(t *testing.T, n network) {
		_, client := tlsPair(t, n)
		client.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read gave %v, want a deadline exceeded", err)
		}
	})
}

// Close of a tls.Conn wants to write an alert, and wakes readers.
func TestTLSCloseWakesReaders(t *testing.T) {
	eachNetwork(t, func(t *testing.T, n network) {
		server, client := tlsPair(t, n)
		ended := make(chan error, 2)
		for _, c := range []*tls.Conn{server, client} {
			go func() {
				_, err := c.Read(make([]byte, 1))
				ended <- err
			}()
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-ended; err == nil {
				t.Error("Read gave no error after the close")
			}
		}
	})
}

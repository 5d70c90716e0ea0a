package conformance

import (
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

// tlsConfigs returns the configurations of a server with a new certificate and of a client
// that trusts it.
func tlsConfigs(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	const name = "unix.test"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("GenerateKey: %v", err)
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
		t.Fatalf("CreateCertificate: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("ParseCertificate: %v", err)
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
		t.Fatalf("connection below TLS: %v", err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	server, client = tls.Server(s, serverConfig), tls.Client(c, clientConfig)
	shake := make(chan error, 1)
	go func() { shake <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-shake); err != nil {
		t.Fatalf("TLS handshake: %v", err)
	}
	return server, client
}

func TestTLSReturnsWhatWasSent(t *testing.T) {
	data := noise(2<<20 + 1)
	eachNetwork(t, func(t *testing.T, n network) {
		server, client := tlsPair(t, n)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			if _, err := io.Copy(server, server); err != nil {
				t.Errorf("io.Copy of the server: %v", err)
			}
			server.CloseWrite()
		})
		wg.Go(func() {
			if _, err := client.Write(data); err != nil {
				t.Errorf("Write of the client: %v", err)
			}
			client.CloseWrite()
		})
		got, err := io.ReadAll(client)
		checkEcho(t, "TLS echo", got, data, err)
	})
}

func TestTLSReadEndsAtItsDeadline(t *testing.T) {
	eachNetwork(t, func(t *testing.T, n network) {
		_, client := tlsPair(t, n)
		client.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read past the deadline: got %v, want ErrDeadlineExceeded", err)
		}
	})
}

// Close of a tls.Conn writes an alert, and wakes the readers at both ends.
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
			t.Fatalf("Close of the client: %v", err)
		}
		for range 2 {
			select {
			case err := <-ended:
				if err == nil {
					t.Error("Read that waits at Close: got nil, want an error")
				}
			case <-timeLimit(t).Done():
				t.Fatal("Read that waits at Close: did not return, want an error")
			}
		}
	})
}

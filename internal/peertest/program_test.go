//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// echoClient connects to sys.argv[1] with a blocking socket and echoes.
const echoClient = `
import socket, sys

with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    while data := s.recv(65536):
        s.sendall(data)
    s.shutdown(socket.SHUT_WR)
`

// programs are the commands of a client or of a server. Each copies its standard input to
// the socket at NAME, and the socket to its standard output, or else it echoes.
var programs = map[string]struct {
	server, abstract, echoes bool
	command                  []string
}{
	"nc":                     {command: []string{"nc", "-N", "-U", "NAME"}},
	"nc server":              {server: true, command: []string{"nc", "-N", "-l", "-U", "NAME"}},
	"socat":                  {command: []string{"socat", "-t20", "-", "UNIX-CONNECT:NAME"}},
	"socat server":           {server: true, command: []string{"socat", "-t20", "UNIX-LISTEN:NAME", "-"}},
	"socat, abstract":        {abstract: true, command: []string{"socat", "-t20", "-", "ABSTRACT-CONNECT:NAME"}},
	"socat server, abstract": {abstract: true, server: true, command: []string{"socat", "-t20", "ABSTRACT-LISTEN:NAME", "-"}},
	"python":                 {echoes: true, command: []string{"python3", "-c", echoClient, "NAME"}},
}

func TestPrograms(t *testing.T) {
	for name, test := range programs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if help, _ := exec.Command(program(t, test.command[0]), "-h").CombinedOutput(); test.command[0] == "nc" && !bytes.Contains(help, []byte("OpenBSD")) {
				t.Skip("nc is another program than OpenBSD's, which may lack the flag -U or -N")
			}
			path, args := socketDir(t)+"/s", slices.Clone(test.command[1:])
			if test.abstract {
				linux(t)
				path = abstract("s")
			}
			for i := range args {
				args[i] = strings.Replace(args[i], "NAME", strings.TrimPrefix(path, "\x00"), 1)
			}
			cmd := peer(t, test.command[0], args...)
			var wait func(string)
			var c *unixsock.Conn
			if test.server {
				wait = finish(t, cmd, data)
				c = connect(t, path)
			} else {
				l := sockettest.ListenAt(t, path)
				wait = finish(t, cmd, data)
				c = accept(t, l)
			}
			if test.echoes {
				sockettest.Check(t, converse(c, data))
				wait("")
			} else {
				echo(t, c)
				wait(data)
			}
		})
	}
}

// RemoteAddr returns the name to which the client has bound its socket.
func TestSocatsNameIsRemoteAddr(t *testing.T) {
	for kind, name := range map[string]string{"UNIX": socketDir(t) + "/s", "ABSTRACT": abstract("s")} {
		t.Run(kind, func(t *testing.T) {
			if kind == "ABSTRACT" {
				linux(t)
			}
			l := sockettest.ListenAt(t, name)
			address := strings.TrimPrefix(name, "\x00")
			wait := finish(t, peer(t, "socat", "-t20", "-", kind+"-CONNECT:"+address+",bind="+address+".client"), "")
			c := accept(t, l)
			if got, want := c.RemoteAddr().String(), name+".client"; got != want {
				t.Errorf("RemoteAddr of a client that is bound: got %q, want %q", got, want)
			}
			echo(t, c)
			wait("")
		})
	}
}

// serve runs server on l until the end of the test.
func serve(t *testing.T, l net.Listener, server *http.Server) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		sockettest.ExpectError(t, "Serve until the server was closed", <-served, http.ErrServerClosed)
	})
}

func TestCurl(t *testing.T) {
	program(t, "curl")
	file := socketDir(t) + "/file"
	sockettest.Check(t, os.WriteFile(file, []byte(data), 0o600))
	mux := http.NewServeMux()
	mux.HandleFunc("/x", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "x") })
	mux.HandleFunc("/data", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, data) })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }) // uses ReadFrom
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read the request's body: got %v after %d bytes, want EOF", err, len(body))
		}
		w.Write(body)
	})
	mux.HandleFunc("/addresses", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, " ", r.RemoteAddr, " ", r.Context().Value(http.LocalAddrContextKey))
	})
	url := "http://any.host/"
	for flag, name := range map[string]string{"--unix-socket": socketDir(t) + "/s", "--abstract-unix-socket": abstract("curl")} {
		t.Run(flag, func(t *testing.T) {
			if flag == "--abstract-unix-socket" {
				linux(t)
			}
			var conns atomic.Int64
			serve(t, sockettest.Got(unixsock.NewTCPUnit(name).Listen("tcp", ":80")).Must(t), &http.Server{
				Handler: mux,
				ConnState: func(_ net.Conn, state http.ConnState) {
					if state == http.StateNew {
						conns.Add(1)
					}
				},
			})
			curl := func(input, want string, args ...string) {
				t.Helper()
				conns.Store(0)
				finish(t, peer(t, "curl", append([]string{"-sSf", flag, strings.TrimPrefix(name, "\x00")}, args...)...), input)(want)
				if n := conns.Load(); n != 1 && flag == "--unix-socket" { // curl 7.88 keeps no connection to an abstract name
					t.Errorf("curl sent its requests over %d connections, want 1", n)
				}
			}
			curl("", data, url+"data")
			curl("", data, url+"file")
			curl("", data[10000:900000], "-r", "10000-899999", url+"file")
			curl(data, data, "--data-binary", "@-", url+"echo")
			curl("", "any.host 127.0.0.1:0 127.0.0.1:1", url+"addresses")
			curl("", strings.Repeat("x", 100), strings.Fields(strings.Repeat(url+"x ", 100))...)
		})
	}
}

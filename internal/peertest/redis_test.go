//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// A session is a connection that speaks RESP, the protocol of Redis.
type session struct {
	net.Conn
	r *bufio.Reader
}

// send sends a command as an array of bulk strings.
func (s *session) send(args ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(arg), arg)
	}
	_, err := io.WriteString(s, b.String())
	return err
}

// reply reads a simple string, an integer or a bulk string.
func (s *session) reply() (string, error) {
	line, err := s.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if !strings.HasPrefix(line, "$") {
		return line, nil
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 {
		return "", fmt.Errorf("reply has an invalid length: %q", line)
	}
	b := make([]byte, n+2)
	_, err = io.ReadFull(s.r, b)
	return string(b[:n]), err
}

// do sends a command and returns an error unless its reply is want.
func (s *session) do(want string, args ...string) error {
	if err := s.send(args...); err != nil {
		return err
	}
	return s.expect(want)
}

func (s *session) expect(want string) error {
	got, err := s.reply()
	if err == nil && got != want {
		err = fmt.Errorf("got a reply of %d bytes, %.40q; want %d, %.40q", len(got), got, len(want), want)
	}
	return err
}

func TestRedis(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	path := dir + "/s"
	sockettest.Check(t, peer(t, "redis-server", "--port", "0", "--unixsocket", path,
		"--save", "", "--appendonly", "no", "--dir", dir, "--daemonize", "no").Start())
	connect(t, path).Close()
	for way, dial := range map[string]func(ctx context.Context) (net.Conn, error){
		"ConnectContext": func(ctx context.Context) (net.Conn, error) { return unixsock.ConnectContext(ctx, path) },
		"TCPUnit": func(ctx context.Context) (net.Conn, error) {
			return unixsock.NewTCPUnit(path).DialContext(ctx, "tcp", "localhost:6379")
		},
	} {
		t.Run(way, func(t *testing.T) {
			newSession := func() *session {
				c, err := dial(t.Context())
				c = limit(t, c, err)
				return &session{c, bufio.NewReader(c)}
			}
			s := newSession()
			for i := range 8 {
				key := fmt.Sprint("key\x00\r\n", i)
				sockettest.Check(t, s.do("+OK", "SET", key, data[i:]))
				sockettest.Check(t, s.do(data[i:], "GET", key))
			}
			const conns, each = 50, 20
			errs := make(chan error, conns+1)
			go func() { // a pipeline
				var err error
				for i := 0; i < 2000 && err == nil; i++ {
					err = s.send("ECHO", strconv.Itoa(i))
				}
				errs <- err
			}()
			for i := range 2000 {
				sockettest.Check(t, s.expect(strconv.Itoa(i)))
			}
			for range conns {
				s := newSession()
				go func() {
					var err error
					for i := 0; i < each && err == nil; i++ {
						if err = s.send("INCR", way); err == nil {
							_, err = s.reply()
						}
					}
					errs <- err
				}()
			}
			for range cap(errs) {
				sockettest.Check(t, sockettest.Receive(t, "a session", errs))
			}
			sockettest.Check(t, s.do(strconv.Itoa(conns*each), "GET", way))
			sockettest.Check(t, s.do("+OK", "QUIT"))
			sockettest.ExpectEOF(t, s, "")
		})
	}
}

//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
)

// redis starts a Redis server on a unix socket and returns the socket's path.
func redis(t *testing.T) string {
	t.Helper()
	dir := socketDir(t)
	path := dir + "/s"
	cmd := peer(t, "redis-server", "--port", "0", "--unixsocket", path,
		"--save", "", "--appendonly", "no", "--dir", dir, "--daemonize", "no")
	if err := cmd.Start(); err != nil {
		t.Fatalf("start redis-server: %v", err)
	}
	connect(t, path).Close()
	return path
}

// redisDials returns the ways to connect to path.
func redisDials(path string) map[string]func(ctx context.Context) (net.Conn, error) {
	return map[string]func(ctx context.Context) (net.Conn, error){
		"ConnectContext": func(ctx context.Context) (net.Conn, error) {
			return unixsock.ConnectContext(ctx, path)
		},
		"TCPUnit": func(ctx context.Context) (net.Conn, error) {
			return unixsock.NewTCPUnit(path).DialContext(ctx, "tcp", "localhost:6379")
		},
	}
}

// A session is a connection that speaks RESP, the protocol of Redis.
type session struct {
	net.Conn
	r *bufio.Reader
}

func newSession(t *testing.T, dial func(ctx context.Context) (net.Conn, error)) *session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	c, err := dial(ctx)
	if err != nil {
		t.Fatalf("dial Redis: got %v, want a connection", err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(timeout))
	return &session{c, bufio.NewReader(c)}
}

// send sends a command as an array of bulk strings.
func (s *session) send(args ...string) error {
	b := fmt.Appendf(nil, "*%d\r\n", len(args))
	for _, arg := range args {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(arg), arg)
	}
	_, err := s.Write(b)
	return err
}

// reply reads a simple string, an integer or a bulk string.
func (s *session) reply() (string, error) {
	line, err := s.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	if len(line) < 3 {
		return "", fmt.Errorf("reply is too short: %q", line)
	}
	kind, rest := line[0], line[1:len(line)-2]
	switch kind {
	case '+', ':':
		return rest, nil
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "", fmt.Errorf("reply has an invalid length: %q", line)
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(s.r, b); err != nil {
			return "", err
		}
		return string(b[:n]), nil
	}
	return "", fmt.Errorf("reply is not a string or an integer: %q", line)
}

// do sends a command and reads its reply.
func (s *session) do(args ...string) (string, error) {
	if err := s.send(args...); err != nil {
		return "", err
	}
	return s.reply()
}

// want sends a command and checks its reply.
func (s *session) want(t *testing.T, want string, args ...string) {
	t.Helper()
	got, err := s.do(args...)
	if err != nil {
		t.Fatalf("send %s: got %v, want a reply", args[0], err)
	}
	if len(want) < 100 && got != want {
		t.Fatalf("send %s: got the reply %q, want %q", args[0], got, want)
	}
	same(t, []byte(got), []byte(want))
}

func TestRedisKeepsValues(t *testing.T) {
	value := string(noise(1 << 20))
	for way, dial := range redisDials(redis(t)) {
		t.Run(way, func(t *testing.T) {
			s := newSession(t, dial)
			s.want(t, "PONG", "PING")
			for i := range 8 {
				key := fmt.Sprint("key\x00\r\n", i)
				s.want(t, "OK", "SET", key, value[i:])
				s.want(t, value[i:], "GET", key)
			}
		})
	}
}

func TestRedisAnswersPipeline(t *testing.T) {
	for way, dial := range redisDials(redis(t)) {
		t.Run(way, func(t *testing.T) {
			s := newSession(t, dial)
			const n = 2000
			sent := make(chan error, 1)
			go func() {
				for i := range n {
					if err := s.send("ECHO", strconv.Itoa(i)); err != nil {
						sent <- err
						return
					}
				}
				sent <- nil
			}()
			for i := range n {
				got, err := s.reply()
				if err != nil || got != strconv.Itoa(i) {
					t.Fatalf("read reply %d: got %q, %v; want %q", i, got, err, strconv.Itoa(i))
				}
			}
			if err := <-sent; err != nil {
				t.Fatalf("send ECHO %d times: got %v, want no error", n, err)
			}
		})
	}
}

func TestRedisCountsAcrossConnections(t *testing.T) {
	for way, dial := range redisDials(redis(t)) {
		t.Run(way, func(t *testing.T) {
			const conns, each = 50, 20
			var wg sync.WaitGroup
			for range conns {
				s := newSession(t, dial)
				wg.Go(func() {
					for range each {
						if _, err := s.do("INCR", way); err != nil {
							t.Errorf("send INCR: got %v, want a reply", err)
							return
						}
					}
				})
			}
			wg.Wait()
			newSession(t, dial).want(t, strconv.Itoa(conns*each), "GET", way)
		})
	}
}

func TestRedisQuitIsEOF(t *testing.T) {
	for way, dial := range redisDials(redis(t)) {
		t.Run(way, func(t *testing.T) {
			s := newSession(t, dial)
			s.want(t, "OK", "QUIT")
			if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("Read after QUIT: got %d bytes, %v; want 0 bytes, EOF", n, err)
			}
		})
	}
}

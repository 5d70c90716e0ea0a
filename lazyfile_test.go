//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// isBare reports whether the poller does not know c yet.
func isBare(c *Conn) bool { return c.file.file.Load() == nil }

func TestConnectionThatNeverWaitsMeetsNoPoller(t *testing.T) {
	client, server := mustPair(t)
	b := make([]byte, 8)
	for range 3 {
		mustTalk(t, client, server)
		mustTalk(t, server, client)
		if n, err := client.Read(nil); n != 0 || err != nil {
			t.Fatal(n, err)
		}
	}
	if onLinux {
		if _, err := client.PeerCred(); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.SetWriteBuffer(1 << 16); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(b); n != 0 || err != io.EOF {
		t.Fatal(n, err)
	}
	if !isBare(client) || !isBare(server) {
		t.Error("the poller knows it")
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}

func TestServerThatWaitedHasThePollerReady(t *testing.T) {
	l := mustListen(t)
	accepted := make(chan *Conn, 1)
	go func() {
		if c, err := l.AcceptContext(t.Context()); err == nil {
			accepted <- c
		}
	}()
	waitInPoller(t, 1)
	mustConnect(t, l.Addr().String())
	server := receive(t, "the accept", accepted)
	defer server.Close()
	if isBare(server) {
		t.Error("the poller does not know it")
	}
}

// The first write that has to wait is where the poller comes in: what others
// write must not come in between.
func TestWritesDoNotMixAsTheFirstComesToWait(t *testing.T) {
	rounds := 500
	if testing.Short() || raceEnabled {
		rounds = 50
	}
	const writers, size = 4, 1 << 18
	got := make([]byte, writers*size)
	for range rounds {
		c, peer, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				message := bytes.Repeat([]byte{byte(i)}, size)
				if n, err := c.Write(message); n != size || err != nil {
					t.Error(n, err)
				}
			})
		}
		if _, err := io.ReadFull(peer, got); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		for message := range slices.Chunk(got, size) {
			if bytes.Count(message, message[:1]) != size {
				t.Fatal("two writes are mixed")
			}
		}
		c.Close()
		peer.Close()
	}
}

// Whatever comes first to a new connection, and whatever comes in between,
// everything ends, and no descriptor is left.
func TestPollerComesInAmongClosesAndDeadlines(t *testing.T) {
	rounds := 3000
	if testing.Short() || raceEnabled {
		rounds = 300
	}
	descriptors := countDescriptors(t)
	uses := []func(c *Conn, ctx context.Context){
		func(c *Conn, _ context.Context) { c.Read(make([]byte, 8)) },
		func(c *Conn, _ context.Context) { c.Read(make([]byte, 8)) },
		func(c *Conn, _ context.Context) { c.Write(make([]byte, 1<<19)) }, // more than fits
		func(c *Conn, _ context.Context) { c.Write(make([]byte, 1<<19)) },
		func(c *Conn, _ context.Context) { c.ReadFrom(bytes.NewReader(make([]byte, 8))) },
		func(c *Conn, _ context.Context) { c.SetDeadline(time.Now().Add(time.Hour)) },
		func(c *Conn, _ context.Context) { c.PeerCred() },
		func(c *Conn, _ context.Context) {
			if f, err := c.File(); err == nil {
				f.Close()
			}
		},
		func(c *Conn, ctx context.Context) { c.CloseOn(ctx) },
		func(c *Conn, _ context.Context) { c.CloseRead() },
		func(c *Conn, _ context.Context) { c.CloseWrite() },
		func(c *Conn, _ context.Context) { c.Close() },
	}
	for range rounds {
		c, peer, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		all := slices.Clone(uses)
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		var wg sync.WaitGroup
		for _, use := range all {
			wg.Go(func() { use(c, ctx) })
		}
		ends(t, "a use of a connection that is closed", wg.Wait)
		cancel()
		peer.Close()
	}
	waitDescriptors(t, descriptors)
}

func TestConnectionThatNobodyCanReachIsClosed(t *testing.T) {
	for what, use := range map[string]func(t *testing.T, c, peer *Conn){
		"new": func(*testing.T, *Conn, *Conn) {},
		"with the poller": func(t *testing.T, c, peer *Conn) {
			if err := c.SetDeadline(time.Time{}); err != nil || isBare(c) {
				t.Error(err)
			}
		},
		"in use": func(t *testing.T, c, peer *Conn) { mustTalk(t, c, peer) },
		"under a custodian that nobody can reach": func(_ *testing.T, c, _ *Conn) {
			ctx, cancel := context.WithCancel(context.Background())
			c.CloseOn(ctx)
			runtime.KeepAlive(cancel)
		},
	} {
		t.Run(what, func(t *testing.T) {
			peer := func() *Conn {
				c, peer, err := Pair()
				if err != nil {
					t.Fatal(err)
				}
				use(t, c, peer)
				return peer
			}()
			defer peer.Close()
			end := make(chan error, 1)
			go func() {
				_, err := peer.Read(make([]byte, 8))
				end <- err
			}()
			waitFor(t, "it stays open", func() bool {
				runtime.GC()
				return len(end) > 0
			})
			if err := <-end; err != io.EOF {
				t.Error(err)
			}
		})
	}
}

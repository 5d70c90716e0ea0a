package main

import (
	"context"
	"sync"
	"time"

	"github.com/go-unixsock/unixsock"
)

// connects is how many goroutines connect at once in the rows about the backlog.
const connects = 1000

// manyConnects measures how long many goroutines take to connect at once to a
// server with a short backlog.
func (b *bench) manyConnects() (sampler, func(), error) {
	path := b.path()
	l, err := unixsock.Listen(path, unixsock.Backlog(4))
	if err != nil {
		return nil, nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	sample := func() (float64, error) {
		return timed(1, func() error { return connectAll(context.Background(), path) })
	}
	return sample, func() { l.Close() }, nil
}

// waitingConnects measures the share of a core that many goroutines use while they
// wait in ConnectContext and nothing accepts.
func (b *bench) waitingConnects() (sampler, func(), error) {
	path := b.path()
	l, err := unixsock.Listen(path, unixsock.Backlog(4))
	if err != nil {
		return nil, nil, err
	}
	sample := func() (float64, error) {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			connectAll(ctx, path)
		}()
		time.Sleep(time.Second / 4) // all are waiting by then
		start, used := time.Now(), cpuTime()
		time.Sleep(time.Second)
		used = cpuTime() - used
		share := float64(used) / float64(time.Since(start))
		cancel()
		<-ended
		return share, nil
	}
	return sample, func() { l.Close() }, nil
}

// connectAll connects from many goroutines at once. It returns one of their
// errors.
func connectAll(ctx context.Context, path string) error {
	errs := make(chan error, connects)
	var clients sync.WaitGroup
	for range connects {
		clients.Go(func() {
			c, err := unixsock.ConnectContext(ctx, path)
			if err != nil {
				errs <- err
				return
			}
			c.Close()
		})
	}
	clients.Wait()
	close(errs)
	return <-errs
}

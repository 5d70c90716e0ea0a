// Command compare measures unixsock against package net: it does the same work
// with both, in turns, and prints the ratio of the times. Below 1, unixsock is
// faster. It takes about three minutes; README.md explains how to read the table.
//
//	go run ./examples/compare
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/go-unixsock/unixsock"
)

func main() {
	perRow := flag.Duration("time", 8*time.Second, "measure each row for this `duration`")
	pattern := flag.String("run", "", "measure only the rows whose name matches this `regexp`")
	raw := flag.Bool("raw", false, "print every sample in the format of Go benchmarks, for benchstat")
	flag.Parse()
	if !unixsock.Available {
		fmt.Printf("Unix domain sockets are not available on %s\n", runtime.GOOS)
		return
	}
	// Garbage is collected between samples only. See takePair and runClient.
	debug.SetGCPercent(-1)

	var err error
	switch {
	case flag.NArg() == 0:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		err = run(ctx, *perRow, *pattern, *raw)
		stop()
	case flag.NArg() == 1 && flag.Arg(0) == clientCommand:
		err = runClient(os.Stdin, os.Stdout)
	default:
		flag.Usage()
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// run measures the rows whose name matches pattern and prints them, until ctx is
// done. A row that fails does not stop the others.
func run(ctx context.Context, perRow time.Duration, pattern string, raw bool) error {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	b, err := newBench()
	if err != nil {
		return err
	}
	defer b.close()

	var out printer = &table{w: os.Stdout}
	if raw {
		out = rawSamples{w: os.Stdout}
	}
	out.begin()
	measured, failed := 0, 0
	for _, r := range b.rows() {
		if !re.MatchString(r.name) {
			continue
		}
		measured++
		s, err := r.measure(ctx, perRow)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		if err != nil {
			failed++
			fmt.Fprintf(os.Stderr, "compare: %s: %v\n", r.name, err)
			continue
		}
		out.print(r, s)
	}
	switch {
	case measured == 0:
		return fmt.Errorf("no row matches %q", pattern)
	case failed > 0:
		return fmt.Errorf("%d of %d rows failed", failed, measured)
	}
	return nil
}

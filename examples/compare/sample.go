package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"time"
)

// A sampler does a fixed amount of work and returns what one unit of it cost:
// nanoseconds, bytes, or whatever the row's unit is.
type sampler func() (float64, error)

// A setup prepares what a sampler needs. The function stop releases it.
type setup func() (sample sampler, stop func(), err error)

// samples holds what was measured, for each side of a row. The samples of the
// same index are a pair: they were taken one straight after the other.
type samples [2][]float64

// fewestPairs is how many pairs of samples a row has, even if its time is over.
const fewestPairs = 5

// measure takes pairs of samples of r for the duration d, or until ctx is done. It
// discards those of the first tenth, in which the program and the kernel warm up.
func (r row) measure(ctx context.Context, d time.Duration) (samples, error) {
	var sides [2]sampler
	for i, side := range r.sides {
		sample, stop, err := side()
		if err != nil {
			return samples{}, err
		}
		defer stop()
		sides[i] = sample
	}
	if r.few {
		d = 0
	}
	fmt.Fprintf(progress, "%s ...", r.name)
	defer fmt.Fprint(progress, "\r\x1b[K") // erases the line

	if _, err := takePairs(ctx, sides, d/10, 1); err != nil {
		return samples{}, err
	}
	return takePairs(ctx, sides, d-d/10, fewestPairs)
}

// takePairs takes pairs of samples for the duration d, and at least fewest.
func takePairs(ctx context.Context, sides [2]sampler, d time.Duration, fewest int) (samples, error) {
	var s samples
	start := time.Now()
	for n := 0; n < fewest || time.Since(start) < d; n++ {
		if err := ctx.Err(); err != nil {
			return samples{}, err
		}
		pair, err := takePair(sides, n%2)
		if err != nil {
			return samples{}, err
		}
		for i, v := range pair {
			s[i] = append(s[i], v)
		}
	}
	return s, nil
}

// takePair takes one sample of each side. The argument first says which side
// comes first: it alternates, so that neither side gains from its place.
func takePair(sides [2]sampler, first int) (pair [2]float64, err error) {
	for _, i := range []int{first, 1 - first} {
		runtime.GC() // so that no sample pays for the garbage of the previous one
		if pair[i], err = sides[i](); err != nil {
			return pair, err
		}
	}
	return pair, nil
}

// medians returns the median of each side.
func (s samples) medians() (first, second float64) {
	return quantile(s[0], 0.5), quantile(s[1], 0.5)
}

// middleHalf returns the quartiles of the ratios of the pairs: half of the
// ratios are between low and high.
func (s samples) middleHalf() (low, high float64) {
	ratios := make([]float64, len(s[0]))
	for i := range ratios {
		ratios[i] = s[0][i] / s[1][i]
	}
	return quantile(ratios, 0.25), quantile(ratios, 0.75)
}

// quantile returns the value below which the fraction q of values lies. It
// interpolates between neighbors.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	below, fraction := math.Modf(q * float64(len(sorted)-1))
	i := int(below)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + fraction*(sorted[i+1]-sorted[i])
}

// timed returns how long f took, divided by n, in nanoseconds.
func timed(n int, f func() error) (float64, error) {
	start := time.Now()
	err := f()
	return float64(time.Since(start)) / float64(n), err
}

// repeat calls f n times, or until it fails.
func repeat(n int, f func() error) error {
	for range n {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// progress shows which row is being measured, if standard error is a terminal.
var progress = func() io.Writer {
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		return os.Stderr
	}
	return io.Discard
}()

// Command compare does the same work with unixsock and with net, in turns, and
// prints how long it took. What counts is the ratio of the medians: below 1,
// unixsock is faster. It takes less than a minute.
//
//	go run ./examples/compare
package main

import (
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/go-unixsock/unixsock"
)

// A row is one line of the table: two ways to do the same work.
type row struct {
	work      string
	target    float64 // what the ratio must not be above
	ours, net measure
	unit      func(float64) string
}

// A measure does some work and returns what it cost. Its first result is thrown
// away, so it may use its first call to prepare.
type measure func() (float64, error)

func main() {
	perRow := flag.Duration("t", 3*time.Second, "how long to measure each `row`")
	only := flag.String("run", "", "measure only the rows that match a `pattern`")
	flag.Parse()
	if !unixsock.Available {
		fmt.Println("unix sockets are not available here")
		return
	}
	if err := run(*perRow, *only); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(perRow time.Duration, only string) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	b, err := newBench()
	if err != nil {
		return err
	}
	defer b.remove()

	const format = "%-42s %9s %9s %6s %8s %s\n"
	fmt.Printf(format, "", "unixsock", "net", "ratio", "at most", "")
	for _, r := range b.rows() {
		if !pattern.MatchString(r.work) {
			continue
		}
		ours, theirs, err := r.medians(perRow)
		fmt.Fprint(progress, "\r\x1b[K")
		if err != nil {
			return fmt.Errorf("%s: %w", r.work, err)
		}
		ratio := math.Round(100*ours/theirs) / 100
		missed := ""
		if ratio > r.target {
			missed = "missed"
		}
		fmt.Printf(format, r.work, r.unit(ours), r.unit(theirs), fmt.Sprintf("%.2f", ratio), fmt.Sprintf("%.2f", r.target), missed)
	}
	if !pattern.MatchString(crowdWork) {
		return nil
	}
	fmt.Fprint(progress, crowdWork, " ...")
	crowd, err := b.crowd()
	fmt.Fprint(progress, "\r\x1b[K")
	if err != nil {
		return err
	}
	fmt.Println(crowd)
	return nil
}

// progress is where the progress line goes: to a terminal only.
var progress = func() io.Writer {
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		return os.Stderr
	}
	return io.Discard
}()

// medians measures both sides in turns, each first in every other turn, until
// the time is over.
func (r row) medians(d time.Duration) (ours, theirs float64, err error) {
	sides := [2]measure{r.ours, r.net}
	var samples [2][]float64
	began := time.Now()
	for turn := 0; turn < 4 || time.Since(began) < d; turn++ {
		fmt.Fprintf(progress, "\r\x1b[K%s ... %3.0f %%", r.work, min(100, 100*float64(time.Since(began))/float64(d)))
		for i := range sides {
			side := (turn + i) % 2
			v, err := sides[side]()
			if err != nil {
				return 0, 0, err
			}
			if turn > 0 {
				samples[side] = append(samples[side], v)
			}
		}
	}
	return median(samples[0]), median(samples[1]), nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func inTime(v float64) string {
	if v < float64(time.Millisecond) {
		return fmt.Sprintf("%.1f µs", v/1e3)
	}
	return fmt.Sprintf("%.1f ms", v/1e6)
}

func inBytes(v float64) string { return fmt.Sprintf("%.0f B", v) }

package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"time"
)

// A printer prints what was measured.
type printer interface {
	begin()
	print(r row, s samples)
}

// A unit says what the samples of a row are.
type unit struct {
	name   string // as Go benchmarks call it
	format func(float64) string
}

var (
	nanoseconds = unit{"ns/op", func(v float64) string {
		if v < float64(time.Millisecond) {
			return fmt.Sprintf("%.1f µs", v/1e3)
		}
		return fmt.Sprintf("%.1f ms", v/1e6)
	}}
	bytes       = unit{"B/op", func(v float64) string { return fmt.Sprintf("%.0f B", v) }}
	allocations = unit{"allocs/op", func(v float64) string { return fmt.Sprintf("%.1f", v) }}
	cores       = unit{"cores", func(v float64) string { return fmt.Sprintf("%.3f", v) }}
)

// A table prints one line for each row: the median of each side, the ratio of
// the medians, and how far the ratios of the pairs scatter.
type table struct {
	w      io.Writer
	labels [2]string // of the columns, as printed last
}

func (t *table) begin() {
	fmt.Fprintf(t.w, "%s/%s, %d CPUs, %s\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
}

func (t *table) print(r row, s samples) {
	if t.labels != r.labels {
		t.labels = r.labels
		fmt.Fprintln(t.w)
		t.line("", r.labels[0], r.labels[1], "ratio", "middle half", "goal", "pairs", "")
	}
	first, second := s.medians()
	low, high := s.middleHalf()
	ratio := first / second
	verdict := ""
	if math.Round(100*ratio) > math.Round(100*r.goal) { // as printed
		verdict = "missed"
	}
	t.line(r.name, r.unit.format(first), r.unit.format(second),
		fmt.Sprintf("%.2f", ratio), fmt.Sprintf("%.2f to %.2f", low, high),
		fmt.Sprintf("%.2f", r.goal), fmt.Sprint(len(s[0])), verdict)
}

func (t *table) line(cells ...any) {
	line := fmt.Sprintf("%-40s %9s %9s %6s  %-12s %6s %5s %s", cells...)
	fmt.Fprintln(t.w, strings.TrimRight(line, " "))
}

// rawSamples prints every sample in the format of Go benchmarks, which benchstat
// reads.
type rawSamples struct{ w io.Writer }

func (p rawSamples) begin() {
	fmt.Fprintf(p.w, "goos: %s\ngoarch: %s\n", runtime.GOOS, runtime.GOARCH)
}

func (p rawSamples) print(r row, s samples) {
	name := strings.ReplaceAll(r.name, " ", "_")
	for i := range s[0] {
		for side, label := range r.labels {
			fmt.Fprintf(p.w, "BenchmarkCompare/%s/side=%s 1 %g %s\n", name, label, s[side][i], r.unit.name)
		}
	}
}

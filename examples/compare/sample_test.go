package main

import (
	"testing"
	"time"
)

func TestQuantileInterpolates(t *testing.T) {
	for _, test := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{7}, 0.75, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 3, 2}, 0.5, 2.5},
		{[]float64{50, 10, 40, 20, 30}, 0.75, 40},
		{[]float64{1, 2}, 1, 2},
	} {
		if got := quantile(test.values, test.q); got != test.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", test.values, test.q, got, test.want)
		}
	}
}

// The middle half pairs each sample with its neighbor in time: a drift that both
// sides share does not widen it.
func TestMiddleHalfIgnoresSharedDrift(t *testing.T) {
	s := samples{{10, 20, 30, 40, 50}, {20, 40, 60, 80, 100}}
	if low, high := s.middleHalf(); low != 0.5 || high != 0.5 {
		t.Errorf("middle half of pairs with ratio 0.5 = %v to %v, want 0.5 to 0.5", low, high)
	}
}

func TestSidesComeFirstInTurns(t *testing.T) {
	var order string
	side := func(name string) setup {
		return func() (sampler, func(), error) {
			return func() (float64, error) { order += name; return 1, nil }, func() {}, nil
		}
	}
	s, err := row{sides: [2]setup{side("a"), side("b")}, few: true}.measure(t.Context(), time.Hour)
	if err != nil || len(s[0]) != fewestPairs || len(s[1]) != fewestPairs {
		t.Errorf("a row with few set has %d and %d samples, %v; want %d each", len(s[0]), len(s[1]), err, fewestPairs)
	}
	if want := "ab" + "abbaabbaab"; order != want { // the first pair warms up
		t.Errorf("samples were taken in the order %q, want %q", order, want)
	}
}

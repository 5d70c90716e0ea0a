package pending

import "testing"

func TestDrainClosesAnIdleQueueAtOnce(t *testing.T) {
	everywhere(t, "accept a; drain; a = closed; ended = 1; poll = over; try = closed; drain leave; close = nothing; ended = 1")
	everywhere(t, "accept a; accept b; drain leave; a = closed; b = closed; ended = 1; drain; event e; take e = over; accept c; c = closed")
}

func TestDrainServesWhatIsPendingUntilClose(t *testing.T) {
	scripts(t,
		"connect 3; drain; drain; accept a; a = 1; sleep 1s; accept b; b = 2; ended = 0; accept c; c = 3; ended = 1; accept d; d = closed",
		"connect 2; drain; try = 1; sleep 1s; try = 2; ended = 1; try = closed",
		"connect 2; drain; event e; take e = 1; sleep 1s; receive r e; r = 2; ended = 1; take e = over",
		"event e; connect 2; drain; take e = 1; take e = 2; ended = 1; take e = over; event f; take f = over",
		"connect 2; drain; poll = ready; try = 1; tick; kept = ready; try = 2; ended = 1; kept = over",
		"accept a; event e; receive r e; reports 1s; connect 2 & drain; a = 1|2; r = 1|2; ended = 1",
		"event e; connect; drain; cancel e; sleep 1s; ended = 0; try = 1; ended = 1",
		"connect; drain; event e; cancel e; try = 1; ended = 1",
		"connect 2; drain; sleep 1s; close = 1; left = 1; ended = 0; drain; ended = 0")
}

func TestDrainThatLeavesTheBacklogServesWhatIsAhead(t *testing.T) {
	scripts(t, "ready; connect 2; drain leave; kept = over; ended = 1; left = 2",
		"event e; connect 3; drain leave; drain; sleep 1s; poll = ready; take e = 1; ended = 1; left = 2",
		"event e; connect 2; drain leave; cancel e; accept a; a = 1; ended = 1; left = 1",
		"connect 2; drain; drain leave; try = 1; ended = 1; left = 1")
}

func TestDrainGoesOnWhileAcceptsFail(t *testing.T) {
	scripts(t,
		"fail; connect 2; drain; sleep 1m; try = full; ended = 0; pass; accept a; a = 1; try = 2; ended = 1",
		"fail; connect 2; drain; accept a; a = full; elsewhere; pass; tick; try = 2; ended = 1",
		"fail; connect; drain; sleep 1m; elsewhere; tick; ended = 1", "fail; connect; drain; drain leave; ended = 1; pass",
		"fail; connect; drain; event e; take e = full; take e = full; pass; tick; take e = 1; ended = 1")
}

func TestShutdownElsewhereEndsTheQueueOnceNothingIsPending(t *testing.T) {
	everywhere(t, "accept a; shut; a = closed; ended = 1; poll = over; try = closed")
	everywhere(t, "connect 4; shut; try = some; tick; accept a; a = some; ended = 0; try = some; accept b; accept c; c = closed; ended = 1")
	scripts(t,
		"ready; connect 2; shut; kept = ready; try = 1; tick; kept = ready; try = 2; ended = 1; kept = over",
		"event e; connect 2; shut; take e = 1; take e = 2; ended = 1; take e = over", "shut; ready; ended = 1; kept = over",
		"shut; event e; ended = 1; take e = over", "shut; try = closed; ended = 1", "connect; shut; try = 1; ended = 0; try = closed",
		"ready; reports 1s; connect; shut; elsewhere; sleep 2s; ended = 1; kept = over", "fail; event e; connect; shut; elsewhere; tick; ended = 1; take e = over",
		"connect; fail; ready; shut; tick; try = full; ended = 0; elsewhere; tick; ended = 1")
}

// Between an accept and the question for the state, a client connects, and a shutdown follows.
func TestConnectionJustBeforeAShutdownIsServed(t *testing.T) {
	for _, script := range []string{"try = 1; try = 2", "accept a; a = 1; try = 2", "event e; take e = 1; take e = 2", "ready; kept = ready; try = 1; try = 2"} {
		bubble(t, func(f *fixture) {
			f.onState = func() { f.do([]string{"connect", "2"}); f.do([]string{"shut"}) }
			f.run(script + "; ended = 0|1; tick; try = closed; ended = 1")
		})
	}
}

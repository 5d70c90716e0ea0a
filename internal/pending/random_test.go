package pending

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
)

var seed = flag.Uint64("seed", 0, "run TestRandomSteps with this seed only")

// TestRandomSteps runs scripts of random steps, some of them at once.
func TestRandomSteps(t *testing.T) {
	first, n := rand.Uint64()>>1, uint64(120)
	if *seed != 0 {
		first, n = *seed, 1
	}
	for s := first; s < first+n && !t.Failed(); s++ {
		t.Run(fmt.Sprint("seed=", s), func(t *testing.T) {
			bubble(t, func(f *fixture) {
				r := random{f, rand.New(rand.NewPCG(s, s)), 0}
				for range 60 {
					step := r.step()
					for r.IntN(3) == 0 { // without the results
						step, _, _ = strings.Cut(step, " = ")
						other, _, _ := strings.Cut(r.step(), " = ")
						step += " & " + other
					}
					f.run(step)
				}
				f.run("pass; reports 0s; interrupts 0s; deadline; sleep 10ms; tick; drain")
				for !isClosed(f.q.done) {
					f.run("try = some; tick")
				}
			})
		})
	}
}

type random struct {
	*fixture
	*rand.Rand
	names int // of calls and contexts
}

// operations are what a step is chosen from. In them, # stands for a new name, ? for a name that
// may be in use, and @ for that of an event.
var operations = strings.Split("connect/connect/connect/connect/connect/connect 2/connect 2/elsewhere/elsewhere/fail/pass/pass/reports 0s/reports 3ms/"+
	"interrupts 0s/interrupts 3ms/accept a# c?/accept a# c?/accept a# c?/accept a# c?/accept a#/accept a#/try/try/try/try/event c?/event c?/event c?/"+
	"receive r# @/receive r# @/receive r# @/receive r# @/take @/take @/take @/cancel c?/cancel c?/cancel c?/"+
	"late d# & event d# & cancel d# & sleep 5ms & callbacks d#/poll/poll/poll/poll/kept/kept/kept/await w#/deadline 2ms/deadline -1s/deadline/"+
	"sleep 1ms/sleep 3ms/sleep 9ms/tick/tick/tick/tick/tick/sync/rare", "/")

// step returns a random step, with what its result must be if that follows from the connections
// that nobody has had yet.
func (r *random) step() string {
	for _, mu := range []*sync.Mutex{&r.q.mu, &r.socket.mu, &r.account} {
		mu.Lock()
		defer mu.Unlock()
	}
	r.names++
	operation, event := operations[r.IntN(len(operations))], ""
	if names := slices.Sorted(maps.Keys(r.events)); len(names) > 0 {
		event = names[r.IntN(len(names))]
	}
	operation = strings.NewReplacer("#", fmt.Sprint(r.names), "?", fmt.Sprint(r.IntN(r.names)), "@", event).Replace(operation)
	oldest := 1
	for r.owned[oldest] {
		oldest++
	}
	switch command := strings.Fields(operation)[0]; {
	case command == "rare":
		return []string{"drain", "drain leave", "shut", "close", "sync"}[r.IntN(5)]
	case (command == "take" || command == "receive") && event == "", (command == "kept" || command == "await") && r.kept == nil,
		command == "accept" && len(r.waiting("accept")) > 8:
		return "sleep 1ms"
	case isClosed(r.q.done):
		return operation
	case command == "try" && oldest <= r.last:
		return fmt.Sprintf("try = %d|full", oldest)
	case command == "try":
		return "try = none|closed"
	case command == "poll" && len(r.waiting("")) > 0 && r.reported: // one that waits may get the connection first
	case command == "poll" && oldest <= r.last:
		return "poll = ready"
	case command == "poll":
		return "poll = nothing|over"
	}
	return operation
}

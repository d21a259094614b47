package main

import (
	"slices"
	"testing"
)

// The limits of what a post may cost: the counted values and a little more, so that one
// more transaction for each post, or one more round trip of a post alone, fails.
// Statements have more room: how often a lane is claimed depends on how fast the
// machine is. A change that makes posts cheaper lowers the limits.
const (
	countedJobs     = 1000
	countedAccounts = 100

	mostTransactions = 1.0   // of a post among many; counted 0.32 to 0.72
	mostStatements   = 1.3   // of the same, BEGIN and COMMIT included; counted 0.48 to 0.87
	mostWALBytes     = 5_000 // of the same; counted 4,500 to 4,600
	mostRoundTrips   = 5     // to PostgreSQL, of a post alone; counted 5
)

// A post among many costs so many transactions and statements.
func TestCostOfManyPosts(t *testing.T) { //nolint:paralleltest // what is counted is counted by the server
	b := fork(t)
	w := workload{accounts: countedAccounts, slots: usualSlots, workers: 1, counted: true}
	s, err := b.burst(t.Context(), b.ours()[0].make(), w, makeJobs("c", countedJobs, 1, accountNames(countedAccounts)))
	if err != nil {
		t.Fatal(err)
	}
	if s.twice > 0 || s.astray > 0 || s.posts != countedJobs {
		t.Errorf("%d posts of %d, %d twice, %d out of order", s.posts, countedJobs, s.twice, s.astray)
	}
	transactions, statements := float64(s.counts.Transactions)/countedJobs, float64(s.counts.Statements)/countedJobs
	t.Logf("%.2f transactions and %.2f statements a post, %+v", transactions, statements, s.counts)
	if transactions > mostTransactions {
		t.Errorf("%.2f transactions a post, want %.1f at most", transactions, mostTransactions)
	}
	if statements > mostStatements {
		t.Errorf("%.2f statements a post, want %.1f at most", statements, mostStatements)
	}
	if bytes := s.counts.WALBytes / countedJobs; bytes > mostWALBytes {
		t.Errorf("%d bytes of WAL a post, want %d at most", bytes, mostWALBytes)
	}
}

const aloneTimes = 9 // posts alone, into some of which an idle worker's own statements fall

// One post, which nothing else waits beside, costs so many round trips.
func TestCostOfOnePost(t *testing.T) { //nolint:paralleltest // as above
	b := fork(t)
	ctx, s := t.Context(), b.ours()[0].make()
	if err := s.start(ctx, workload{accounts: 1, slots: usualSlots, workers: 1, counted: true}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(ctx); err != nil {
			t.Error(err)
		}
	}()
	b.x.reset(0)
	var trips []int64
	for i, j := range makeJobs("alone", aloneTimes, 1, accountNames(1)) {
		before := b.pg.proxy.roundTrips.Load()
		if err := s.submit(ctx, []*job{j}); err != nil {
			t.Fatal(err)
		}
		if err := b.reach(ctx, i+1); err != nil {
			t.Fatal(err)
		}
		if err := s.settle(ctx); err != nil {
			t.Fatal(err)
		}
		trips = append(trips, b.pg.proxy.roundTrips.Load()-before)
	}
	slices.Sort(trips)
	t.Logf("round trips of each post: %v", trips)
	// The lowest is one into which nothing of the worker's own has fallen.
	if cost := trips[0]; cost > mostRoundTrips {
		t.Errorf("%d round trips of one post, want %d at most", cost, mostRoundTrips)
	}
}

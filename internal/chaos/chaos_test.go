package chaos

import (
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost/internal/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m.Run, nil)) }

// oneOf picks one by chance, or "" for all if JETPOST_TEST_FULL is set.
func oneOf(names ...string) string {
	if os.Getenv("JETPOST_TEST_FULL") != "" {
		return ""
	}
	return names[rand.IntN(len(names))]
}

// turns are, of each two runs, the one that is made, by chance; "" for both.
var turns = []string{oneOf(runTokens, runLimits), oneOf(runPublish, runStandstill)}

// inTurn skips a test whose turn it is not.
func inTurn(t *testing.T, name string) {
	t.Helper()
	if !slices.Contains(turns, name) && !slices.Contains(turns, "") {
		t.Skip("skipped: " + strings.Join(turns, " and ") + " were picked; set JETPOST_TEST_FULL=1 for all")
	}
}

// leftOut skips the test of a database that was not picked.
func leftOut(t *testing.T, picked string) {
	t.Helper()
	if !strings.HasSuffix(t.Name(), "/"+picked) && picked != "" {
		t.Skip("skipped: " + picked + " was picked; set JETPOST_TEST_FULL=1 for both")
	}
}

// TestChaosTokens runs short as a test of the suite. scripts/chaos runs it long,
// with arguments of its own behind those of package testing.
func TestChaosTokens(t *testing.T) {
	t.Parallel()
	inTurn(t, runTokens)
	short := chaosConfig{seed: uint64(time.Now().UnixNano()), workers: 3, faults: 3, claimFor: time.Second, harm: 4 * time.Second}
	plan := tokenPlan{tokens: 300, rounds: 3, life: 20 * time.Second}
	picked := oneOf("PostgreSQL", "SQLite")
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		leftOut(t, picked)
		runTokenChaos(t, short, plan)
	})
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		leftOut(t, picked)
		onSQLite, fewer := short, plan
		onSQLite.sqlite, onSQLite.workers, fewer.tokens = true, 2, 120
		runTokenChaos(t, onSQLite, fewer)
	})
}

// TestChaosPublish runs short as a test of the suite, like TestChaosTokens.
func TestChaosPublish(t *testing.T) {
	t.Parallel()
	inTurn(t, runPublish)
	short := chaosConfig{
		seed: uint64(time.Now().UnixNano()), workers: 3, faults: 3, restart: true, claimFor: 2 * time.Second, harm: 6 * time.Second,
	}
	picked := oneOf("PostgreSQL", "SQLite")
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		leftOut(t, picked)
		runPublishChaos(t, short, publishPlan{threads: 250, accounts: 20, slots: 16, over: 20 * time.Second})
	})
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		leftOut(t, picked)
		onSQLite := short
		onSQLite.sqlite, onSQLite.workers, onSQLite.faults = true, 2, 4
		runPublishChaos(t, onSQLite, publishPlan{threads: 120, accounts: 15, slots: 8, over: 20 * time.Second})
	})
}

// TestChaosLimits runs short as a test of the suite, like TestChaosTokens: on each
// database in two halves at once, for the time that windows take.
//
//nolint:paralleltest // it measures times, and so runs before the tests that are parallel
func TestChaosLimits(t *testing.T) {
	inTurn(t, runLimits)
	short := chaosConfig{seed: uint64(time.Now().UnixNano()), workers: 2, claimFor: 12 * time.Second}
	plan := limitPlan{
		// X rounds the end of a window up to a second, which is up to a third of so short a one.
		accounts: 6, singles: 80, cycles: 4, thefts: 1, windowMS: 3200, accountMax: 4, appMax: 24, stops: 5, closedMS: 4500, want: 0.75, slots: 16,
	}
	var together sync.WaitGroup // they wait most of the time: more at once than processors
	for _, database := range []string{"PostgreSQL", "SQLite"} {
		for _, half := range [][]string{{actAccounts, actApp}, {actStops, actJoins}} {
			together.Go(func() {
				t.Run(database+" "+strings.Join(half, " "), func(t *testing.T) {
					cfg, plan := short, plan
					cfg.sqlite, plan.acts = database == "SQLite", half
					runLimitsChaos(t, cfg, plan)
				})
			})
		}
	}
	together.Wait()
}

// TestChaosStandstill runs short as a test of the suite, like TestChaosTokens.
func TestChaosStandstill(t *testing.T) {
	t.Parallel()
	inTurn(t, runStandstill)
	short := chaosConfig{seed: uint64(time.Now().UnixNano()), workers: 3, claimFor: 4 * time.Second, harm: shortestHarm}
	plan := standPlan{rounds: 1, accounts: 30, rate: 5}
	picked := oneOf("PostgreSQL", "SQLite")
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		leftOut(t, picked)
		runStandstillChaos(t, short, plan)
	})
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		leftOut(t, picked)
		onSQLite := short
		onSQLite.sqlite, onSQLite.workers = true, 1
		runStandstillChaos(t, onSQLite, plan)
	})
}

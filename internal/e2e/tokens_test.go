package e2e

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/postgres"
)

const tokenPath = "/2/oauth2/token"

// wantCurrent fails unless the ledger holds the very pair that X takes.
func (s *site) wantCurrent(account string) store.Token {
	s.T.Helper()
	var stored store.Token
	// A database that was restarted has ended connections, and a later order may be
	// between X and the ledger just now.
	testkit.Eventually(s.T, "the ledger's pair of "+account+" to be the one that X takes", func() bool {
		token, err := s.Ledger.Token(s.T.Context(), account)
		stored = token
		current, _ := s.Sim.CurrentToken(account)
		return err == nil && token.Access.Reveal() == current.AccessToken && token.Refresh.Reveal() == current.RefreshToken && !current.Revoked
	})
	return stored
}

// force asks for the refresh of an account's token, however young.
func (s *site) force(account string) {
	s.T.Helper()
	if code, stdout, stderr := s.Run("refresh", account, "--force"); code != exitOK {
		s.T.Fatalf("refresh: exit code %d\n%s%s", code, stdout, stderr)
	}
}

// TestPairSurvivesDatabaseAndWorker: X gives a pair, the database is gone, and
// then the worker is killed. The pair lies in the lifeboat, and another worker that
// shares it brings it in: the next one, or one that lives.
func TestPairSurvivesDatabaseAndWorker(t *testing.T) {
	t.Parallel()
	for _, lives := range []bool{false, true} {
		t.Run(fmt.Sprintf("another lives %t", lives), func(t *testing.T) {
			t.Parallel()
			cluster := pgtest.Start(t)
			s := newSite(t, harness.SiteConfig{Database: cluster.URL(), Lease: longLease, Accounts: []string{"alice"}})
			lifeboat := t.TempDir()
			w := s.Worker("worker-1", "--lifeboat", lifeboat)
			var other *harness.Process
			if lives {
				other = s.Worker("worker-2", "--lifeboat", lifeboat, "--roles", "publish")
			}
			reached := s.AtCall("POST", tokenPath, 1, true, func() { cluster.Stop(t) })
			s.force("alice")
			testkit.Wait(t, "the exchange", reached)
			w.Until("token.in_lifeboat")
			w.Kill()
			if pairs := afloat(t, lifeboat); len(pairs) != 1 {
				t.Fatalf("the lifeboat holds %v", pairs)
			}
			cluster.Restart(t)
			if lives {
				other.Until("token.rescued")
			}
			w = s.Worker("worker-3", "--lifeboat", lifeboat)
			if !lives {
				w.Until("token.rescued")
			}
			s.wantRescued("alice", lifeboat)
			harness.Stop(w)
			if lives {
				harness.Stop(other)
			}
		})
	}
}

// wantRescued fails unless an account's second pair was brought in from the lifeboat,
// and X takes it.
func (s *site) wantRescued(account, lifeboat string) {
	s.T.Helper()
	// The order that was given back may have been carried out since.
	rescued := s.wantCurrent(account)
	if rescued.Version < 2 || !rescued.StartedAt.IsZero() {
		s.T.Errorf("the token has version %d, and its exchange began at %v", rescued.Version, rescued.StartedAt)
	}
	if pairs := afloat(s.T, lifeboat); len(pairs) != 0 {
		s.T.Errorf("the lifeboat still holds %v", pairs)
	}
	s.force(account)
	testkit.Eventually(s.T, "the rescued token is exchanged", func() bool {
		token, err := s.Ledger.Token(s.T.Context(), account)
		return err == nil && token.Version > rescued.Version
	})
	s.wantCurrent(account)
	for _, v := range s.Sim.Violations() {
		s.T.Errorf("violation: %s of %s: %s", v.Kind, v.Account, v.Detail)
	}
}

// TestPairSurvivesHangAndWorker: X gives a pair, the database neither takes it nor
// fails, and the worker is killed. The next one of that machine has the pair.
func TestPairSurvivesHangAndWorker(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.Migrated(t, postgres.Migrate))
	s := newSite(t, harness.SiteConfig{Database: proxy.URL(), Lease: longLease, Accounts: []string{"alice"}})
	lifeboat := t.TempDir()
	w := s.Worker("worker-1", "--lifeboat", lifeboat)
	reached := s.AtCall("POST", tokenPath, 1, true, proxy.Hang)
	s.force("alice")
	testkit.Wait(t, "the exchange", reached)
	testkit.Eventually(t, "the pair is in the lifeboat", func() bool {
		return len(afloat(t, lifeboat)) == 1
	})
	w.Kill()
	proxy.Cut() // what the worker had sent is lost with it
	proxy.Heal()
	w = s.Worker("worker-2", "--lifeboat", lifeboat)
	w.Until("token.rescued")
	if token := s.wantCurrent("alice"); token.Version != 2 {
		t.Errorf("the token has version %d", token.Version)
	}
	harness.Stop(w)
}

// afloat lists the pairs in a lifeboat.
func afloat(t testkit.T, lifeboat string) []string {
	t.Helper()
	pairs, err := filepath.Glob(filepath.Join(lifeboat, "*", "*.pair.json"))
	testkit.Must(t, err)
	return pairs
}

// TestPairOutlastsDatabase: the same, but the worker lives until the database
// is back.
func TestPairOutlastsDatabase(t *testing.T) {
	t.Parallel()
	cluster := pgtest.Start(t)
	s := newSite(t, harness.SiteConfig{Database: cluster.URL(), Lease: longLease, Accounts: []string{"alice"}})
	lifeboat := t.TempDir()
	w := s.Worker("worker-1", "--lifeboat", lifeboat)
	reached := s.AtCall("POST", tokenPath, 1, true, func() { cluster.Stop(t) })
	s.force("alice")
	testkit.Wait(t, "the exchange", reached)
	w.Until("token.in_lifeboat")
	cluster.Restart(t)
	w.Until("token.refreshed")
	s.wantCurrent("alice")
	if pairs := afloat(t, lifeboat); len(pairs) != 0 {
		t.Errorf("the lifeboat still holds %v", pairs)
	}
	harness.Stop(w)
}

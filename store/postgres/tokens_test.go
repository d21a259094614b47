package postgres

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// pairsAtOnce are claims of tokens whose pairs are saved at once.
type pairsAtOnce struct {
	t      *testing.T
	b      *testBundle
	claims []store.Token
}

func newPairsAtOnce(t *testing.T, n int) *pairsAtOnce {
	t.Helper()
	p := &pairsAtOnce{t: t, b: setup(t)}
	for i := range n {
		name := fmt.Sprintf("account-%d", i)
		_, err := p.b.st.ImportAccount(t.Context(), store.Import{
			Name: name, XUserID: fmt.Sprint(i + 2), Username: name, Now: p.b.now,
			Pair: store.Pair{Access: secret.New("a"), Refresh: secret.New(uuid.NewString()), ExpiresAt: p.b.now.Add(time.Hour)},
		})
		check(t, err)
		claim, claimed, err := p.b.st.ClaimToken(t.Context(), store.TokenClaim{Account: name, UsedVersion: 1, Force: true, Pace: store.Pace{Lease: lease}, Now: p.b.now})
		check(t, err)
		testkit.Equal(t, "claimed", claimed, true)
		p.claims = append(p.claims, claim)
	}
	return p
}

// save saves a pair with that scope for a claim.
func (p *pairsAtOnce) save(claim store.Token, scope string) <-chan error {
	pair := store.Pair{Access: secret.New("b"), Refresh: secret.New("r-" + claim.Account), ExpiresAt: p.b.now.Add(2 * time.Hour), Scope: scope}
	done := make(chan error, 1)
	go func() { done <- p.b.st.SaveToken(context.WithoutCancel(p.t.Context()), claim, pair, p.b.now) }()
	return done
}

// waits waits until a statement is under way, and so many pairs wait for it.
func (p *pairsAtOnce) waits(n int) {
	p.t.Helper()
	waitFor(p.t, p.b.st.saves, n)
}

// hold begins a transaction that holds locks.
func (p *pairsAtOnce) hold(statement string, args ...any) pgx.Tx {
	p.t.Helper()
	tx, err := p.b.st.pool.Begin(p.t.Context())
	check(p.t, err)
	_, err = tx.Exec(p.t.Context(), statement, args...)
	check(p.t, err)
	return tx
}

// TestSavesShareACommit: pairs that are saved at once share a transaction. A claim that is
// outdated, and a pair that the database refuses, fail alone.
func TestSavesShareACommit(t *testing.T) {
	t.Parallel()
	const tokens = 8
	p := newPairsAtOnce(t, tokens+1)
	const fenced, refused = 2, 5
	held := p.hold("LOCK TABLE oauth_tokens IN SHARE MODE")
	first := p.save(p.claims[tokens], "")
	p.waits(0)
	outdated := p.claims[fenced]
	outdated.Version--
	saves := make([]<-chan error, tokens)
	for i := range saves {
		claim := p.claims[i]
		if i == fenced {
			claim = outdated
		}
		saves[i] = p.save(claim, "")
	}
	p.waits(tokens)
	check(t, held.Rollback(t.Context()))
	check(t, <-first)
	for i, done := range saves {
		if err := <-done; errors.Is(err, store.ErrFenced) != (i == fenced) || i != fenced && err != nil {
			t.Errorf("pair %d: %v", i, err)
		}
	}
	var transactions int
	check(t, p.b.st.pool.QueryRow(t.Context(), "SELECT count(DISTINCT xmin::text) FROM oauth_tokens WHERE version = 2 AND id <> $1",
		p.claims[tokens].ID).Scan(&transactions))
	testkit.Equal(t, fmt.Sprintf("transactions of %d pairs", tokens-1), transactions, 1)

	p = newPairsAtOnce(t, tokens+1)
	held = p.hold("LOCK TABLE oauth_tokens IN SHARE MODE")
	first = p.save(p.claims[tokens], "")
	p.waits(0)
	for i := range saves {
		scope := ""
		if i == refused {
			scope = "zero \x00"
		}
		saves[i] = p.save(p.claims[i], scope)
	}
	p.waits(tokens)
	check(t, held.Rollback(t.Context()))
	check(t, <-first)
	for i, done := range saves {
		if err := <-done; (err != nil) != (i == refused) {
			t.Errorf("pair %d: %v", i, err)
		}
	}
}

// TestSaveBesideAHeldRow: somebody holds the row of one token. The pairs of others do not
// wait for it.
func TestSaveBesideAHeldRow(t *testing.T) {
	t.Parallel()
	p := newPairsAtOnce(t, 3)
	row := p.hold("SELECT FROM oauth_tokens WHERE id = $1 FOR UPDATE", p.claims[0].ID)
	table, err := row.Begin(t.Context()) // a savepoint, to let go of the table alone
	check(t, err)
	_, err = table.Exec(t.Context(), "LOCK TABLE oauth_tokens IN SHARE MODE")
	check(t, err)
	first := p.save(p.claims[2], "")
	p.waits(0)
	slow, free := p.save(p.claims[0], ""), p.save(p.claims[1], "")
	p.waits(2) // so that both go together
	check(t, table.Rollback(t.Context()))
	check(t, <-first)
	check(t, <-free)
	select {
	case err := <-slow:
		t.Errorf("a pair was saved in a row that is held: %v", err)
	default:
	}
	check(t, row.Rollback(t.Context()))
	check(t, <-slow)
}

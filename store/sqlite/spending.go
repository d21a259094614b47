package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	sqlMonthSpent = `
SELECT coalesce(sum(CASE WHEN account = '' THEN micros END), 0), coalesce(sum(CASE WHEN account <> '' THEN micros END), 0), coalesce(max(billed), 0)
FROM spending WHERE month = ?1 AND account IN ('', ?2)`
	sqlOwnLimit     = `SELECT coalesce(max(monthly_limit), 0) FROM lanes WHERE account = ?1`
	sqlOpenExpenses = `
SELECT e.request_id, e.month, e.micros, e.cost, e.posts, e.live,
    CASE WHEN EXISTS (SELECT 1 FROM requests AS r WHERE r.account = e.account AND r.id = e.request_id)
        THEN (SELECT count(*) FROM posts AS p WHERE p.account = e.account AND p.request_id = e.request_id AND p.state = 'posted')
        ELSE e.posts END, -- nobody knows any more
    NOT EXISTS (SELECT 1 FROM requests AS r WHERE r.account = e.account AND r.id = e.request_id AND ` + unfinished + `)
FROM expenses AS e WHERE e.account = ?1 ORDER BY e.request_id`
	sqlCloseExpense = `DELETE FROM expenses WHERE account = ?1 AND request_id = ?2`
	sqlOpenExpense  = `INSERT INTO expenses (account, request_id, month, micros, cost, posts, live) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)`
	sqlAddSpending  = `
INSERT INTO spending (month, account, micros) VALUES (?1, '', ?3), (?1, ?2, ?3)
ON CONFLICT (month, account) DO UPDATE SET micros = max(micros + excluded.micros, 0)`
	sqlNoteBilled = `
INSERT INTO spending (month, account, micros, billed) VALUES (?1, '', 0, 1) ON CONFLICT (month, account) DO UPDATE SET billed = 1`
	sqlForgetBilled = `UPDATE spending SET billed = 0 WHERE month = ?1 AND account = '' AND billed`
	sqlLimitMonth   = `UPDATE lanes SET monthly_limit = nullif(?2, 0) WHERE account = ?1`
)

// Spend implements store.Spending.
func (s *Store) Spend(ctx context.Context, account string, e store.Expense) (spent store.Spent, err error) {
	err = s.change(ctx, "set cost aside", func(ctx context.Context, tx *sql.Tx) error {
		month := rules.Month(e.Now)
		aside, err := correct(ctx, tx, account, e.ID, month)
		if err != nil {
			return err
		}
		var app, own int64
		var billed bool
		if err := tx.QueryRowContext(ctx, sqlMonthSpent, month, account).Scan(&app, &own, &billed); err != nil {
			return err
		}
		if spent = rules.Spend(e, app, own, billed, e.Now); aside {
			spent.Granted = true
		}
		if !spent.Granted || aside {
			return nil
		}
		if _, err := tx.ExecContext(ctx, sqlOpenExpense, account, e.ID, month, spent.Needs, e.Micros, e.Posts, e.Live); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, sqlAddSpending, month, account, spent.Needs)
		return err
	})
	return spent, err
}

// correct ends what was set aside for finished requests and in earlier months, and tells
// whether the cost of that request is set aside.
func correct(ctx context.Context, tx *sql.Tx, account, id, month string) (aside bool, err error) {
	open, err := collect(ctx, tx, func(row scanner) (o rules.OpenExpense, err error) {
		err = row.Scan(&o.ID, &o.Month, &o.Micros, &o.Cost, &o.Posts, &o.Live, &o.LiveNow, &o.Finished)
		return o, err
	}, sqlOpenExpenses, account)
	if err != nil {
		return false, err
	}
	for _, o := range open {
		if o.Month == month && !o.Finished {
			aside = aside || o.ID == id
			continue
		}
		if _, err := tx.ExecContext(ctx, sqlCloseExpense, account, o.ID); err != nil {
			return false, err
		}
		if _, err := tx.ExecContext(ctx, sqlAddSpending, o.Month, account, o.Correction()); err != nil {
			return false, err
		}
	}
	return aside, nil
}

// MonthSpent implements store.Spending.
func (s *Store) MonthSpent(ctx context.Context, account string, now time.Time) (spent store.Spent, err error) {
	spent.MonthEnds = store.MonthEnd(now)
	err = s.row(ctx, sqlMonthSpent, rules.Month(now), account).Scan(&spent.App, &spent.Account, &spent.Billed)
	if err == nil {
		err = s.row(ctx, sqlOwnLimit, account).Scan(&spent.Limit)
	}
	return spent, s.wrap("read spending", err)
}

// NoteBilled implements store.Spending.
func (s *Store) NoteBilled(ctx context.Context, now time.Time) error {
	return s.bill(ctx, "note what X refused to bill", sqlNoteBilled, now)
}

// ForgetBilled implements store.Spending.
func (s *Store) ForgetBilled(ctx context.Context, now time.Time) error {
	return s.bill(ctx, "forget what X refused to bill", sqlForgetBilled, now)
}

func (s *Store) bill(ctx context.Context, what, query string, now time.Time) error {
	return s.change(ctx, what, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, query, rules.Month(now))
		return err
	})
}

// LimitMonth implements store.Spending.
func (s *Store) LimitMonth(ctx context.Context, account string, micros int64, now time.Time) error {
	return s.change(ctx, "limit month", func(ctx context.Context, tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlLimitMonth, account, micros)
		if err == nil && n == 0 {
			err = store.ErrNotFound
		}
		if err == nil {
			_, err = endHolds(ctx, tx, account, jetpost.CodePostingLimit, now)
		}
		return err
	})
}

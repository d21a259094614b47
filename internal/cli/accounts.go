package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// maxImportLine bounds one line of an import; tokens are far shorter.
const maxImportLine = 64 << 10 // bytes

// accountsCmd is 'jetpost accounts'.
type accountsCmd struct {
	Connect    accountsConnectCmd    `cmd:"" help:"Connect an account: its owner consents on X's page, in a browser."`
	Disconnect accountsDisconnectCmd `cmd:"" help:"Revoke an account's consent. Its jobs wait until it is connected again."`
	Erase      accountsEraseCmd      `cmd:"" help:"Remove what is known of an account, except hashes of its requests' ids. What is live on X stays there."`
	Import     accountsImportCmd     `cmd:"" help:"Import accounts with tokens that were obtained elsewhere."`
	Limit      accountsLimitCmd      `cmd:"" help:"Set what an account's posts of a month may cost by estimate."`
	Link       accountsLinkCmd       `cmd:"" help:"Make a one-time link with which a customer connects an account."`
	List       accountsListCmd       `cmd:"" help:"List accounts and the state of their tokens."`
	Remove     accountsRemoveCmd     `cmd:"" help:"Forget an account that is disconnected. The ids of its requests stay known."`
	Rename     accountsRenameCmd     `cmd:"" help:"Give an account another name. Its requests go with it."`
	Show       accountsShowCmd       `cmd:"" help:"Show one account: its user on X, its token, and what to do."`
}

type accountsLimitCmd struct {
	Name       string  `arg:"" help:"Account."`
	MonthlyUSD float64 `arg:"" name:"usd" help:"Limit in US dollars; 0 removes it, so that the workers' --account-monthly-limit holds."`

	natsFlags `embed:""`
}

// Run sets an account's own monthly limit.
func (c *accountsLimitCmd) Run(e *env) error {
	return e.operate(func(ctx context.Context, workers operations) error {
		month, err := workers.AccountLimit(ctx, c.Name, jetpost.AccountLimit{MonthlyUSD: c.MonthlyUSD})
		if failedAs(err, jetpost.ErrInvalid) {
			return mistakes("cannot set a limit", err.Error())
		}
		if err != nil {
			return err
		}
		limit := "no limit of its own"
		if month.MonthlyUSD > 0 {
			limit = "a limit of " + dollars(month.MonthlyUSD) + " a month"
		}
		return e.say(month, "%s has %s, and has spent %s under limits in the month that ends %s", c.Name, limit, dollars(month.SpentUSD), localTime(month.MonthEnds))
	})
}

type accountsImportCmd struct {
	File string `env:"-" short:"f" default:"-" placeholder:"PATH" help:"JSON lines like {\"name\":\"acme\",\"access_token\":\"...\",\"refresh_token\":\"...\",\"expires_at\":\"2026-12-01T09:00:00Z\"}; - is standard input, the default."`

	readFlags `embed:""`
}

// importResult is the result of one line. It has nothing of a line that
// could not be decoded, because that may be a token.
type importResult struct {
	Line int `json:"line"`
	*app.Imported
	Error string `json:"error,omitempty"`
	Do    string `json:"do,omitempty"`
}

// Run imports line by line. A bad line does not affect the others.
func (c *accountsImportCmd) Run(e *env) error {
	from := e.stdin
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return &exitError{code: exitUsage, err: fmt.Errorf("--file: %w", err)}
		}
		defer func() { _ = f.Close() }() // only read from
		from = f
	}
	return e.withControl(func(_ context.Context, control *app.Control) error {
		done, failed, err := importLines(e, control.Importer(), from)
		switch {
		case err != nil:
			return err
		case failed > 0:
			return fmt.Errorf("%d of %d accounts were not imported", failed, done)
		case done == 0:
			return &exitError{code: exitUsage, err: errors.New("the input has no line to import")}
		}
		return nil
	})
}

func importLines(e *env, importer *app.Importer, from io.Reader) (done, failed int, err error) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxImportLine)
	for n := 1; lines.Scan(); n++ {
		text := lines.Bytes()
		if n == 1 {
			text = bytes.TrimPrefix(text, []byte(jetpost.ByteOrderMark))
		}
		text = bytes.TrimSpace(text)
		if len(text) == 0 {
			continue
		}
		done++
		result := importLine(e.ctx, importer, n, text)
		if result.Error != "" {
			failed++
		}
		if err := e.show(result, result.text()); err != nil {
			return done, failed, err
		}
	}
	if err := lines.Err(); err != nil {
		return done, failed, fmt.Errorf("read lines: %w", err)
	}
	return done, failed, e.ctx.Err()
}

func importLine(ctx context.Context, importer *app.Importer, n int, text []byte) importResult {
	result := importResult{Line: n}
	line, err := decodeImport(text)
	if err == nil {
		var imported app.Imported
		if imported, err = importer.Import(ctx, line); err == nil {
			result.Imported = &imported
			return result
		}
	}
	result.Error, result.Do = err.Error(), app.Hint(err)
	return result
}

// decodeImport decodes one line. Unlike those of package json, its errors repeat no
// value of the line, because any value may be a misplaced token.
func decodeImport(text []byte) (app.ImportLine, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	var line app.ImportLine
	err := decoder.Decode(&line)
	if err == nil && decoder.More() {
		err = new(json.SyntaxError)
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var moment *time.ParseError
	switch {
	case err == nil:
		return line, nil
	case errors.As(err, &kind) && kind.Field != "":
		return app.ImportLine{}, fmt.Errorf("%s: has the wrong type, want a string", kind.Field)
	case errors.As(err, &moment):
		return app.ImportLine{}, errors.New("expires_at: is not a time; want one like 2026-12-01T09:00:00Z")
	case errors.As(err, &syntax), errors.Is(err, io.ErrUnexpectedEOF):
		return app.ImportLine{}, errors.New("is not a JSON object on one line")
	default:
		return app.ImportLine{}, errors.New("is not an object with only name, access_token, refresh_token and expires_at")
	}
}

func (r importResult) text() string {
	switch {
	case r.Imported != nil && r.Result == store.TokenUnchanged:
		return fmt.Sprintf("line %d: unchanged: %s already has these tokens or newer ones\n", r.Line, r.Name)
	case r.Imported != nil && r.Result == store.AccountCreated:
		return fmt.Sprintf("line %d: imported %s, which is @%s\n", r.Line, r.Name, r.Username)
	case r.Imported != nil:
		return fmt.Sprintf("line %d: new tokens for %s, which is @%s\n", r.Line, r.Name, r.Username)
	case r.Do != "":
		return fmt.Sprintf("line %d: FAILED: %s\n  do: %s\n", r.Line, r.Error, r.Do)
	default:
		return fmt.Sprintf("line %d: FAILED: %s\n", r.Line, r.Error)
	}
}

type accountsListCmd struct {
	State string `env:"-" placeholder:"STATE" help:"Only accounts in this state: ok, paused, refresh_failing, reauth_required or disconnected."`

	natsFlags `embed:""`
}

// maxAccounts bounds the accounts that are listed.
const maxAccounts = 1_000_000

// Run lists accounts.
func (c *accountsListCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		infos, err := allPages(maxAccounts, func(limit int, cursor string) ([]jetpost.AccountInfo, string, error) {
			page, err := workers.AccountList(ctx, jetpost.AccountList{State: c.State, Limit: limit, Cursor: cursor})
			return page.Accounts, page.Next, err
		})
		if failedAs(err, jetpost.ErrInvalid) {
			return mistakes("cannot list accounts", "--"+err.Error())
		}
		if err != nil {
			return err
		}
		accounts := make([]store.Account, len(infos))
		for i, info := range infos {
			accounts[i] = storedAccount(info)
		}
		return list(e, accounts, "ACCOUNT\tUSER\tTOKEN ENDS\tREFRESHED\tOPEN\tSTATE", func(a store.Account) string {
			return fmt.Sprintf("%s\t@%s\t%s\t%s\t%d\t%s", a.Name, a.Username, localTime(a.TokenExpiresAt), localTime(a.LastRefreshAt), a.Open, accountState(a))
		})
	})
}

// storedAccount is an account as the command line has always told it in JSON.
func storedAccount(a jetpost.AccountInfo) store.Account {
	return store.Account{
		Name: a.Name, XUserID: a.XUserID, Username: a.Username, CreatedAt: a.CreatedAt, Open: a.Open, TokenExpiresAt: a.TokenExpiresAt, Pause: a.Pause,
		TokenMeta: store.TokenMeta{
			LastRefreshAt: a.LastRefreshAt, RefreshError: a.RefreshError, RefreshFailedAt: a.RefreshFailedAt, RequiresReauth: a.ReauthRequired,
		},
	}
}

// storedReport is a report as the command line has always told it in JSON.
func storedReport(r jetpost.AccountReport) app.AccountReport {
	report := app.AccountReport{
		Account: storedAccount(r.Account), State: r.State, Do: r.Do, Scope: r.Scope, Missing: r.Missing, Attempts: r.Attempts,
		NextAttemptAt: r.NextAttemptAt, InDoubtSince: r.InDoubtSince,
	}
	for _, retry := range r.Retries {
		report.Retries = append(report.Retries, store.Retry(retry))
	}
	return report
}

// accountState is that of an account's token and, before it, its pause.
func accountState(a store.Account) string {
	token := tokenState(a)
	switch {
	case a.Pause.Since.IsZero():
		return token
	case token == control.TokenOK:
		return "paused " + pauseText(a.Pause)
	default:
		return "paused " + pauseText(a.Pause) + "; " + token
	}
}

func tokenState(a store.Account) string {
	switch {
	case a.Disconnected():
		return "DISCONNECTED"
	case a.RequiresReauth:
		return "RE-AUTHORISE: " + a.RefreshError
	case a.RefreshError != "":
		return "refresh failing: " + a.RefreshError
	default:
		return control.TokenOK
	}
}

type accountsRenameCmd struct {
	Name string `arg:"" help:"Account."`
	To   string `arg:"" help:"New name: 1 to 63 of a-z 0-9 _ -."`

	natsFlags `embed:""`
}

// Run renames an account.
func (c *accountsRenameCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		info, err := workers.AccountRename(ctx, c.Name, jetpost.AccountRename{To: c.To})
		if failedAs(err, jetpost.ErrInvalid) {
			return mistakes("cannot rename", err.Error())
		}
		if err != nil {
			return err
		}
		return e.say(storedAccount(info), "%s is %s now: publish its jobs under that name; jobs for %s are refused", c.Name, c.To, c.Name)
	})
}

type accountsRemoveCmd struct {
	Name string `arg:"" help:"Account."`
	Yes  bool   `env:"-" help:"Do not ask for confirmation."`

	natsFlags `embed:""`
}

// Run removes an account after a confirmation.
func (c *accountsRemoveCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		account, err := workers.AccountGet(ctx, c.Name)
		if err != nil {
			return err
		}
		question := fmt.Sprintf("Remove %s, which is @%s, with all its requests but their ids?", c.Name, account.Account.Username)
		if err := e.confirm(c.Yes, "remove", question); err != nil {
			return err
		}
		removed, err := workers.AccountRemove(ctx, c.Name, jetpost.AccountRemove{})
		if err != nil {
			return err
		}
		return e.say(removed, "removed %s, which was @%s", removed.Name, removed.Username)
	})
}

type accountsShowCmd struct {
	Name string `arg:"" help:"Account."`

	natsFlags `embed:""`
}

// Run shows one account.
func (c *accountsShowCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		report, err := workers.AccountGet(ctx, c.Name)
		if err != nil {
			return err
		}
		stored := storedReport(report)
		return e.show(stored, accountText(stored))
	})
}

// missingText says which requests do not start because of a missing permission; "" if none.
func missingText(scopes []string) string {
	switch {
	case slices.Contains(scopes, xapi.ScopePostWrite):
		return xapi.ScopePostWrite + ", without which nothing is posted"
	case len(scopes) > 0:
		return scopes[0] + ", without which no request with media starts"
	}
	return ""
}

func accountText(r app.AccountReport) string {
	var rows []string
	line := func(name, value string) {
		if value != "" && value != "-" {
			rows = append(rows, name+":\t"+value)
		}
	}
	line("account", r.Name)
	line("user", fmt.Sprintf("@%s, X id %s", r.Username, r.XUserID))
	line("state", r.State)
	if !r.Pause.Since.IsZero() {
		line("paused", pauseText(r.Pause))
	}
	line("missing", missingText(r.Missing))
	line("do", r.Do)
	if r.Disconnected() {
		line("disconnected", localTime(r.RefreshFailedAt))
	} else {
		line("token ends", localTime(r.TokenExpiresAt))
		line("scope", r.Scope)
	}
	line("last refresh", localTime(r.LastRefreshAt))
	if r.RefreshError != "" && !r.Disconnected() {
		line("last failure", localTime(r.RefreshFailedAt)+"  "+excerpt(r.RefreshError))
	}
	line("in doubt since", localTime(r.InDoubtSince))
	if n := len(r.Retries); n > 0 {
		line("tried again", fmt.Sprintf("%d times while in doubt, last %s", n, localTime(r.Retries[n-1].StartedAt)))
	}
	line("next attempt", localTime(r.NextAttemptAt))
	line("open requests", strconv.Itoa(r.Open))
	line("added", localTime(r.CreatedAt))
	return align(rows)
}

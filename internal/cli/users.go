package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/jetpost/jetpost"
)

// usersCmd is 'jetpost users'.
type usersCmd struct {
	Add       usersAddCmd      `cmd:"" help:"Add a user of the dashboard. The password is asked for, or is the first line of standard input."`
	List      usersListCmd     `cmd:"" help:"List the users of the dashboard."`
	Role      usersRoleCmd     `cmd:"" help:"Set what a user may do, from the next page on."`
	Password  usersPasswordCmd `cmd:"" help:"Set a user's password, and end all sessions of the user. It is asked for, or is the first line of standard input."`
	Remove    usersRemoveCmd   `cmd:"" help:"Remove a user, and end all sessions of the user now."`
	natsFlags `embed:""`
}

type usersAddCmd struct {
	Name string       `arg:"" help:"Name of the user: 1 to 64 of a-z 0-9 . _ @ -."`
	Role jetpost.Role `env:"-" required:"" placeholder:"ROLE" help:"What the user may do: viewer sees everything; editor publishes and changes requests, too; admin changes accounts, pauses and users, too."`
}

// Run adds a user.
func (c *usersAddCmd) Run(e *env) error {
	password, err := e.newPassword(c.Name)
	if err != nil {
		return err
	}
	return e.look(func(ctx context.Context, workers operations) error {
		added, err := workers.UserAdd(ctx, jetpost.UserAdd{Name: c.Name, Role: c.Role, Password: password})
		if failedAs(err, jetpost.ErrInvalid) {
			return mistakes("cannot add a user", err.Error())
		}
		if err != nil {
			return err
		}
		return e.say(added, "added %s, %s", added.Name, added.Role)
	})
}

// newPassword asks a person for a password twice, or reads a line of standard input. It is
// no argument, since others can read a command line.
func (e *env) newPassword(name string) (string, error) {
	terminal, ok := e.stdin.(*os.File)
	if !ok || !isTerminal(terminal) {
		line, err := bufio.NewReader(io.LimitReader(e.stdin, jetpost.MaxPassword+2)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read password: %w", err)
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	ask := func(what string) (string, error) {
		fmt.Fprint(e.stderr, what)
		password, err := term.ReadPassword(int(terminal.Fd()))
		fmt.Fprintln(e.stderr)
		return string(password), err
	}
	password, err := ask(fmt.Sprintf("Password for %s, %d characters or more: ", name, jetpost.MinPassword))
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	again, err := ask("The same again: ")
	switch {
	case err != nil:
		return "", fmt.Errorf("read password: %w", err)
	case again != password:
		return "", mistakes("cannot set the password", "the two are not the same")
	}
	return password, nil
}

type usersListCmd struct{}

// Run lists all users.
func (*usersListCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		users, err := allPages(maxUsers, func(limit int, cursor string) ([]jetpost.User, string, error) {
			page, err := workers.UserList(ctx, jetpost.UserList{Limit: limit, Cursor: cursor})
			return page.Users, page.Next, err
		})
		if err != nil {
			return err
		}
		return list(e, users, "NAME\tROLE\tCREATED\tPASSWORD SET", func(u jetpost.User) string {
			return strings.Join([]string{u.Name, string(u.Role), localTime(u.CreatedAt), localTime(u.PasswordAt)}, "\t")
		})
	})
}

// maxUsers bounds the list.
const maxUsers = 10_000

type usersRoleCmd struct {
	Name string       `arg:"" help:"Name of the user."`
	Role jetpost.Role `arg:"" help:"The new role: viewer, editor or admin."`
}

// Run sets a role.
func (c *usersRoleCmd) Run(e *env) error {
	return setUser(e, jetpost.UserSet{Name: c.Name, Role: c.Role})
}

func setUser(e *env, in jetpost.UserSet) error {
	return e.look(func(ctx context.Context, workers operations) error {
		user, err := workers.UserSet(ctx, in)
		if failedAs(err, jetpost.ErrInvalid) {
			return mistakes("cannot set the user", err.Error())
		}
		if err != nil {
			return err
		}
		return e.say(user, "%s is %s, password set %s", user.Name, user.Role, localTime(user.PasswordAt))
	})
}

type usersPasswordCmd struct {
	Name string `arg:"" help:"Name of the user."`
}

// Run sets a password.
func (c *usersPasswordCmd) Run(e *env) error {
	password, err := e.newPassword(c.Name)
	if err != nil {
		return err
	}
	if password == "" {
		return mistakes("cannot set the user", "password: is empty")
	}
	return setUser(e, jetpost.UserSet{Name: c.Name, Password: password})
}

type usersRemoveCmd struct {
	Name string `arg:"" help:"Name of the user."`
}

// Run removes a user.
func (c *usersRemoveCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		removed, err := workers.UserRemove(ctx, jetpost.UserRemove{Name: c.Name})
		if err != nil {
			return err
		}
		return e.say(removed, "removed %s", c.Name)
	})
}

// auditCmd is 'jetpost audit'.
type auditCmd struct {
	List      auditListCmd `cmd:"" help:"List who changed what, the latest first."`
	natsFlags `embed:""`
}

type auditListCmd struct {
	Actor     string `env:"-" placeholder:"WHO" help:"Only changes of this one, as the list names it: user:anna, token:shop, cli:root."`
	Operation string `env:"-" placeholder:"NAME" help:"Only changes by this operation, for example account.pause."`
	Account   string `env:"-" placeholder:"NAME" help:"Only changes of this account."`
	Since     string `env:"-" placeholder:"TIME" help:"Only changes since a time like 2026-12-01T09:00:00Z, or within a duration like 24h."`
	Limit     int    `env:"-" default:"100" help:"How many are listed at most (${default})."`
}

// Run lists changes.
func (c *auditListCmd) Run(e *env) error {
	since, err := moment(c.Since, true, time.Now())
	if err != nil {
		return mistakes("cannot list changes", "--since: "+err.Error())
	}
	return e.look(func(ctx context.Context, workers operations) error {
		entries, err := allPages(c.Limit, func(limit int, cursor string) ([]jetpost.AuditEntry, string, error) {
			page, err := workers.AuditList(ctx, jetpost.AuditList{
				Actor: c.Actor, Operation: c.Operation, Account: c.Account, Since: since, Limit: limit, Cursor: cursor,
			})
			return page.Entries, page.Next, err
		})
		if err != nil {
			return err
		}
		return list(e, entries, "TIME\tWHO\tOPERATION\tACCOUNT\tTARGET\tOUTCOME", func(a jetpost.AuditEntry) string {
			return strings.Join([]string{localTime(a.At), excerpt(a.Actor), a.Operation, a.Account, excerpt(a.Target), a.Outcome}, "\t")
		})
	})
}

package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
)

// tokensCmd is 'jetpost tokens'.
type tokensCmd struct {
	Create    tokensCreateCmd `cmd:"" help:"Create an API token and print it, once."`
	List      tokensListCmd   `cmd:"" help:"List API tokens, with those that have ended."`
	Revoke    tokensRevokeCmd `cmd:"" help:"End an API token now."`
	natsFlags `embed:""`
}

type tokensCreateCmd struct {
	Name     string         `arg:"" help:"Name of the token: 1 to 64 of a-z 0-9 -."`
	Accounts []string       `env:"-" required:"" placeholder:"NAME" help:"Accounts that it may name, or '*' for all and for operations that concern none."`
	Verbs    []jetpost.Verb `env:"-" required:"" placeholder:"VERB" help:"What it allows: read, publish (with check, reschedule and cancel), manage (every other change)."`
	TTL      days           `name:"ttl" env:"-" default:"90d" placeholder:"DURATION" help:"How long it works (${default}; 5 years at most)."`
}

// createdToken is a token that was made, with its secret.
type createdToken struct {
	Token string `json:"token"`
	jetpost.APIToken
}

// Run makes a token here, and its digest known to the workers.
func (c *tokensCreateCmd) Run(e *env) error {
	token, digest := client.NewToken(c.Name)
	return e.look(func(ctx context.Context, workers operations) error {
		made, err := workers.TokenCreate(ctx, jetpost.TokenCreate{
			Name: c.Name, Digest: digest, Accounts: c.Accounts, Verbs: c.Verbs, ExpiresAt: time.Now().Add(time.Duration(c.TTL)),
		})
		switch {
		case failedAs(err, jetpost.ErrInvalid):
			return mistakes("cannot create a token", err.Error())
		case err != nil:
			return err
		}
		return e.show(createdToken{token, made}, fmt.Sprintf("%s\nuntil %s; it is not shown again\n", token, localTime(made.ExpiresAt)))
	})
}

type tokensListCmd struct{}

// Run lists all tokens.
func (*tokensListCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		tokens, err := allPages(maxTokens, func(limit int, cursor string) ([]jetpost.APIToken, string, error) {
			page, err := workers.TokenList(ctx, jetpost.TokenList{Limit: limit, Cursor: cursor})
			return page.Tokens, page.Next, err
		})
		if err != nil {
			return err
		}
		now := time.Now()
		return list(e, tokens, "NAME\tACCOUNTS\tVERBS\tSTATE\tEND\tCREATED", func(t jetpost.APIToken) string {
			return strings.Join([]string{
				t.Name, excerpt(strings.Join(t.Accounts, ",")), verbsText(t.Verbs), tokenStateOf(t, now), localTime(t.ExpiresAt), localTime(t.CreatedAt),
			}, "\t")
		})
	})
}

// maxTokens bounds the list.
const maxTokens = 10_000

func verbsText(verbs []jetpost.Verb) string {
	words := make([]string, len(verbs))
	for i, verb := range verbs {
		words[i] = string(verb)
	}
	return strings.Join(words, ",")
}

func tokenStateOf(t jetpost.APIToken, now time.Time) string {
	switch {
	case !t.RevokedAt.IsZero():
		return "revoked"
	case !now.Before(t.ExpiresAt):
		return "ended"
	}
	return "live"
}

type tokensRevokeCmd struct {
	Name string `arg:"" help:"Name of the token."`
}

// Run revokes a token.
func (c *tokensRevokeCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		revoked, err := workers.TokenRevoke(ctx, jetpost.TokenRevoke{Name: c.Name})
		if err != nil {
			return err
		}
		return e.say(revoked, "revoked %s", c.Name)
	})
}

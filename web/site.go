package web

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
)

const (
	// DefaultLinkLife, MinLinkLife and MaxLinkLife say how long a link works. Until it
	// is used, everybody who has it can connect an account.
	DefaultLinkLife = time.Hour
	MinLinkLife     = time.Minute
	MaxLinkLife     = 7 * 24 * time.Hour

	// maxAddress bounds an address to return to, as browsers and proxies do.
	maxAddress = 2048 // bytes

	tokenBytes = 32 // of each random value
	tokenChars = 43 // as they are written

	callbackPath = "/connect/callback"
)

// Site is where people reach the pages, and where they may be sent from there.
type Site struct {
	// Public is the address of the handler for people, see ParsePublicURL.
	Public *url.URL
	// ReturnHosts are the hosts, with their ports where they have one, that a
	// link may return to; see ParseReturnHost.
	ReturnHosts []string
}

// RedirectURI is where X sends people back to. It must be registered in X's
// developer console exactly so.
func (s Site) RedirectURI() string { return s.Public.String() + callbackPath }

// ParsePublicURL reads the address of the handler, without what follows. It is
// https, or http on a loopback address, where no cookie or code can be overheard.
func ParsePublicURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || !plain(text):
		return nil, errors.New("is no plain address; for example https://connect.example.com")
	case u.Hostname() == "localhost":
		// Else nobody would notice before X refuses.
		return nil, errors.New("names localhost, to which X does not send people back; use 127.0.0.1")
	case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
		return nil, errors.New("begins with neither https:// nor http://127.0.0.1; for example https://connect.example.com")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	if u.Path != "" && (path.Clean(u.Path) != u.Path || strings.Contains(text, "%")) {
		return nil, errors.New("has a path that is not plain; for example https://example.com/connections")
	}
	return u, nil
}

// ParseReturnHost reads a host of the list that links may return to.
func ParseReturnHost(text string) (string, error) {
	host := strings.ToLower(text)
	u, err := url.Parse("https://" + host)
	if err != nil || host == "" || u.Host != host || u.Hostname() == "" || !plain(host) || strings.HasSuffix(host, ":") || strings.Contains(host, "*") {
		return "", fmt.Errorf("%q is no host; for example app.example.com or 127.0.0.1:3000", text)
	}
	return host, nil
}

// CheckReturn says why people may not be sent to an address, or returns nil. Every
// browser must read the address as this package does.
func (s Site) CheckReturn(address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil || len(address) > maxAddress || !plain(address) || u.Opaque != "" || u.User != nil || u.Hostname() == "":
		return errors.New("is no plain address; for example https://app.example.com/connected")
	case !slices.Contains(s.ReturnHosts, strings.ToLower(u.Host)):
		return fmt.Errorf("leads to %s, which is not one of the hosts to return to", u.Host)
	case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
		return errors.New("must begin with https://")
	}
	return nil
}

// plain reports whether a text has only characters of an address, and none that
// browsers read in another way: they take a backslash for a slash, and skip spaces and
// control characters.
func plain(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\\\"<>^`{|}", r) })
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// LinkError lists the reasons why a link cannot be made.
type LinkError struct{ Mistakes []string }

func (e *LinkError) Error() string { return "cannot make a link: " + strings.Join(e.Mistakes, "; ") }

// NewLink is a link to make.
type NewLink struct {
	Account  string
	Life     time.Duration // within MinLinkLife and MaxLinkLife
	ReturnTo string        // where people are sent afterwards; "" shows a page
	Now      time.Time
}

// Link is a link that was made. Its URL is known to its holder alone.
type Link struct {
	URL       string    `json:"url"`
	Account   string    `json:"account"`
	ExpiresAt time.Time `json:"expires_at"`
	ReturnTo  string    `json:"return_to,omitempty"`
}

// linkKeeper keeps links that are made.
type linkKeeper interface {
	AddLink(ctx context.Context, link store.NewLink) error
}

// MakeLink makes a link that connects an account under a name, which may be a
// known one. It fails with *LinkError.
func (s Site) MakeLink(ctx context.Context, links linkKeeper, want NewLink) (Link, error) {
	var mistakes []string
	if err := jetpost.CheckAccount(want.Account); err != nil {
		mistakes = append(mistakes, err.Error())
	}
	if want.Life < MinLinkLife || want.Life > MaxLinkLife {
		mistakes = append(mistakes, fmt.Sprintf("ttl: %s is not within %s and %s", want.Life, MinLinkLife, MaxLinkLife))
	}
	if want.ReturnTo != "" {
		if err := s.CheckReturn(want.ReturnTo); err != nil {
			mistakes = append(mistakes, "return-to: "+err.Error())
		}
	}
	if len(mistakes) > 0 {
		return Link{}, &LinkError{Mistakes: mistakes}
	}
	token, ends := newToken(), want.Now.Add(want.Life)
	if err := links.AddLink(ctx, store.NewLink{
		Token: token, Account: want.Account, ReturnTo: want.ReturnTo, ExpiresAt: ends, Now: want.Now,
	}); err != nil {
		return Link{}, err
	}
	return Link{
		URL: s.Public.String() + "/connect/" + token.Reveal(), Account: want.Account,
		ExpiresAt: ends.UTC().Truncate(time.Second), ReturnTo: want.ReturnTo,
	}, nil
}

// newToken makes a value that nobody can guess.
func newToken() secret.String {
	value := make([]byte, tokenBytes)
	_, _ = rand.Read(value) // never fails: it ends the program instead
	return secret.New(base64.RawURLEncoding.EncodeToString(value))
}

// readToken reads a value that newToken made. Other values are not looked up.
func readToken(text string) (secret.String, bool) {
	if len(text) != tokenChars || strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return secret.String{}, false
	}
	return secret.New(text), true
}

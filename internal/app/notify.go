package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/store"
)

const (
	// noticeEvery is how often the verdict is looked at. A change is told once it has
	// been seen twice in a row: what heals by itself at once wakes nobody.
	noticeEvery = 5 * time.Second
	// notifyWithin bounds one call of the webhook, which is tried notifyTries times.
	notifyWithin = 10 * time.Second
	notifyTries  = 3
	// keptVerdict is the name of the verdict that was told last.
	keptVerdict = "verdict"
)

// Notice is what a webhook is sent when the verdict changes.
type Notice struct {
	// Text is all of it for people.
	Text         string       `json:"text"`
	Installation string       `json:"installation"`
	State        health.State `json:"state"`
	Code         string       `json:"code,omitempty"`
	Reason       string       `json:"reason,omitempty"`
	Do           string       `json:"do,omitempty"`
	Was          health.State `json:"was,omitempty"` // the state before, where it is known
	At           time.Time    `json:"at"`
}

// Notifier posts each change of the verdict to a webhook, once.
type Notifier struct {
	URL string
	// Status looks; it returns an error where only the configuration can be wrong.
	Status func(context.Context) (Status, error)
	// Ledger, where it is set, keeps what was told, so that of several workers one
	// tells. While it is away each tells what it sees.
	Ledger interface {
		Desired(ctx context.Context) ([]store.Desired, error)
		Keep(ctx context.Context, k store.Desired) (bool, error)
	}
	Log *slog.Logger
	// Every is noticeEvery where zero.
	Every time.Duration

	seen, told verdictKey
	alone      bool // what was told last is not in the ledger
}

// verdictKey is what must differ for a change; the numbers in a reason do all the time.
type verdictKey struct {
	State health.State `json:"state"`
	Code  string       `json:"code"`
}

// CheckNotify refuses an address that nothing can be posted to.
func CheckNotify(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return &ConfigError{Mistakes: []string{"--notify: is no http or https URL"}} // it may hold a secret
	}
	return nil
}

// Run looks until the context ends.
func (n *Notifier) Run(ctx context.Context) error {
	n.told = verdictKey{State: health.Publishing} // which nobody needs to be told
	every := time.NewTicker(max(n.Every, time.Millisecond))
	if n.Every == 0 {
		every.Reset(noticeEvery)
	}
	defer every.Stop()
	for {
		s, err := n.Status(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		n.look(ctx, s)
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
	}
}

func (n *Notifier) look(ctx context.Context, s Status) {
	is := verdictKey{s.State, s.Code}
	settled := is == n.seen
	n.seen = is
	if !settled {
		return
	}
	was, mine := n.claim(ctx, is)
	if !mine {
		n.told = is
		return
	}
	n.told = is
	notice := Notice{
		Installation: s.Installation, State: s.State, Code: s.Code, Reason: s.Reason, Do: s.Do, Was: was.State, At: time.Now().UTC(),
		Text: s.Summary + "\n",
	}
	if s.Do != "" {
		notice.Text += "do: " + s.Do + "\n"
	}
	notice.Text += s.Installation
	n.send(ctx, notice)
}

// claim tells whether a change is this process's to tell, and what was told before.
func (n *Notifier) claim(ctx context.Context, is verdictKey) (was verdictKey, mine bool) {
	if n.Ledger == nil {
		return n.told, is != n.told
	}
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	was, version, err := n.kept(ctx)
	if err == nil && was == is && !n.alone {
		return was, false
	}
	if err == nil {
		value, _ := json.Marshal(is) // two texts
		var kept bool
		if kept, err = n.Ledger.Keep(ctx, store.Desired{Name: keptVerdict, Value: value, Version: version}); err == nil {
			if !kept { // another one tells it
				n.alone = false
				return was, false
			}
			if n.alone {
				was = n.told
			}
			n.alone = false
			return was, was != is
		}
	}
	mine = is != n.told
	n.alone = n.alone || mine
	return n.told, mine
}

func (n *Notifier) kept(ctx context.Context) (was verdictKey, version int64, err error) {
	was = verdictKey{State: health.Publishing}
	all, err := n.Ledger.Desired(ctx)
	for _, k := range all {
		if k.Name == keptVerdict {
			version = k.Version
			if json.Unmarshal(k.Value, &was) != nil {
				was = verdictKey{}
			}
		}
	}
	return was, version, err
}

func (n *Notifier) send(ctx context.Context, notice Notice) {
	body, err := json.Marshal(notice)
	for try := range notifyTries {
		if err == nil {
			err = post(ctx, n.URL, body)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		n.Log.Warn("notify.failed", "error", err, "try", try+1, "state", notice.State)
		if try+1 < notifyTries {
			err = nil
		}
	}
}

func post(ctx context.Context, address string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, notifyWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return errors.New("the address cannot be called")
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		if wrapped := new(url.Error); errors.As(err, &wrapped) {
			err = wrapped.Err // without the address, which may hold a secret
		}
		return err
	}
	defer func() { _ = response.Body.Close() }()                     // only read from
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<16)) // so that the connection serves again
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("the webhook answers %s", response.Status)
	}
	return nil
}

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
	// noticeEvery is how often the verdict is checked. A change is posted after it was
	// seen twice in a row, so that a short disturbance causes no alert.
	noticeEvery = 5 * time.Second
	// notifyWithin bounds one call of the webhook, which is tried notifyTries times.
	notifyWithin = 10 * time.Second
	notifyTries  = 3
	// desiredVerdict is the name in the ledger of the verdict that was posted last.
	desiredVerdict = "verdict"
)

// Notice is the message to the webhook when the verdict changes.
type Notice struct {
	// Text has everything, for people.
	Text         string       `json:"text"`
	Installation string       `json:"installation"`
	State        health.State `json:"state"`
	Code         string       `json:"code,omitempty"`
	Reason       string       `json:"reason,omitempty"`
	Do           string       `json:"do,omitempty"`
	Was          health.State `json:"was,omitempty"` // the previous state, if it is known
	At           time.Time    `json:"at"`
}

// Notifier posts each change of the verdict to a webhook, once.
type Notifier struct {
	URL string
	// Status gathers the status. Its error means that the configuration is wrong.
	Status func(context.Context) (Status, error)
	// Ledger stores the verdict that was posted last, so that one of several workers
	// posts a change. Nil, or while the ledger is away, each worker posts.
	Ledger interface {
		Desired(ctx context.Context) ([]store.Desired, error)
		Keep(ctx context.Context, k store.Desired) (bool, error)
	}
	Log *slog.Logger
	// Every is how often the verdict is checked; zero means noticeEvery.
	Every time.Duration

	seen, told verdictKey
	alone      bool // the verdict posted last is not in the ledger
}

// verdictKey is the part of a verdict whose change is posted. The numbers in a reason
// change all the time.
type verdictKey struct {
	State health.State `json:"state"`
	Code  string       `json:"code"`
}

// CheckNotify checks that an address is an http or https URL.
func CheckNotify(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return &ConfigError{Mistakes: []string{"--notify: is not an http or https URL"}} // the URL may contain a secret
	}
	return nil
}

// Run posts changes until the context ends.
func (n *Notifier) Run(ctx context.Context) error {
	n.told = verdictKey{State: health.Publishing} // the normal state is not posted at the start
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
		n.check(ctx, s)
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
	}
}

func (n *Notifier) check(ctx context.Context, s Status) {
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

// claim tells whether this process has to post a change, and what was posted before.
func (n *Notifier) claim(ctx context.Context, is verdictKey) (was verdictKey, mine bool) {
	if n.Ledger == nil {
		return n.told, is != n.told
	}
	ctx, cancel := context.WithTimeout(ctx, factsWithin)
	defer cancel()
	was, version, err := n.lastPosted(ctx)
	if err == nil && was == is && !n.alone {
		return was, false
	}
	if err == nil {
		value, _ := json.Marshal(is) // two strings
		var stored bool
		if stored, err = n.Ledger.Keep(ctx, store.Desired{Name: desiredVerdict, Value: value, Version: version}); err == nil {
			if !stored { // another process posts it
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

func (n *Notifier) lastPosted(ctx context.Context) (was verdictKey, version int64, err error) {
	was = verdictKey{State: health.Publishing}
	all, err := n.Ledger.Desired(ctx)
	for _, k := range all {
		if k.Name == desiredVerdict {
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
			err = wrapped.Err // without the address, which may contain a secret
		}
		return err
	}
	defer func() { _ = response.Body.Close() }()                     // only read from
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<16)) // so that the connection can be reused
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("the webhook answers %s", response.Status)
	}
	return nil
}

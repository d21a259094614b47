package consumers

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
)

const (
	// hookTimeout bounds a delivery, from the connection to the end of the answer.
	hookTimeout = 15 * time.Second
	// hookAnswerBytes bounds what is read of an answer's body, and hookAnswerChars what an
	// error repeats of it.
	hookAnswerBytes = 4 << 10
	hookAnswerChars = 100
	// maxRetryAfter bounds for how long a receiver can have its events wait.
	maxRetryAfter = 24 * time.Hour
)

// HookError says why a receiver did not take an event.
type HookError struct {
	Err error
	// RetryAfter is how long the receiver wants to be left alone; zero where it said
	// nothing.
	RetryAfter time.Duration
	// Gone says that the receiver wants no events any more.
	Gone bool
}

func (e *HookError) Error() string { return e.Err.Error() }
func (e *HookError) Unwrap() error { return e.Err }

// HookSender sends events to receivers, which are not trusted: it follows no redirect and
// reaches no private address. It is safe for concurrent use.
type HookSender struct {
	internet
	timeout time.Duration
	kept    *http.Transport // its connections were admitted when they were made
}

// NewHookSender makes a sender. allow are private networks that it may reach.
func NewHookSender(allow []netip.Prefix) *HookSender {
	s := &HookSender{internet: internet{Private: allow}, timeout: hookTimeout}
	s.kept = s.direct()
	return s
}

// Send sends one event. id is the same however often the event is sent. The error is a
// *HookError.
func (s *HookSender) Send(ctx context.Context, hook store.Hook, key secret.String, id string, event []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, hook.URL, bytes.NewReader(event))
	if err != nil || req.URL.Scheme != "https" {
		return &HookError{Err: errors.New("the receiver's address is not one that starts with https://")}
	}
	at := strconv.FormatInt(time.Now().Unix(), 10)
	signature, err := signHook(key, id, at, event)
	if err != nil {
		return &HookError{Err: err}
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "jetpost", "Webhook-Id": id, "Webhook-Timestamp": at, "Webhook-Signature": signature,
	} {
		req.Header.Set(name, value)
	}
	resp, err := s.once(req)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &HookError{Err: fmt.Errorf("no answer within %s", s.timeout)}
	case err != nil:
		return &HookError{Err: fmt.Errorf("call the receiver: %w", quiet{err})}
	}
	defer func() { _ = resp.Body.Close() }()                          // only read from
	body, _ := io.ReadAll(io.LimitReader(resp.Body, hookAnswerBytes)) // the status counts, whatever follows it
	return judgeHook(resp, body, time.Now())
}

// once makes one request.
func (s *HookSender) once(req *http.Request) (*http.Response, error) {
	proxy, err := s.chooseProxy(req)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		return s.roundTrip(req)
	}
	return s.kept.RoundTrip(req)
}

// signHook signs an event as the Standard Webhooks specification has it.
func signHook(key secret.String, id, at string, event []byte) (string, error) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(key.Reveal(), store.HookSecretPrefix))
	if err != nil {
		return "", errors.New("the secret of the webhook is damaged: remove it, and add another one")
	}
	mac := hmac.New(sha256.New, raw)
	_, _ = mac.Write([]byte(id + "." + at + ".")) // a hash takes everything
	_, _ = mac.Write(event)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)), nil
}

// judgeHook tells what an answer means.
func judgeHook(resp *http.Response, body []byte, now time.Time) error {
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return nil
	}
	failure := &HookError{Gone: resp.StatusCode == http.StatusGone, RetryAfter: retryAfter(resp.Header.Get("Retry-After"), now)}
	told := strconv.Itoa(resp.StatusCode) + " " + http.StatusText(resp.StatusCode)
	switch words := printable(body); {
	case resp.StatusCode >= 300 && resp.StatusCode <= 399:
		failure.Err = fmt.Errorf("the receiver answered %s, and redirects are not followed", told)
	case words != "":
		failure.Err = fmt.Errorf("the receiver answered %s: %s", told, words)
	default:
		failure.Err = fmt.Errorf("the receiver answered %s", told)
	}
	return failure
}

// retryAfter reads the header, in seconds or as a time.
func retryAfter(header string, now time.Time) time.Duration {
	wait := time.Duration(0)
	if seconds, err := strconv.ParseUint(header, 10, 32); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}

// printable is the beginning of an answer, on one line.
func printable(body []byte) string {
	var b strings.Builder
	for i, word := range strings.Fields(strings.ToValidUTF8(string(body), "")) {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(word)
	}
	chars := 0
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if chars++; chars > hookAnswerChars || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, b.String()))
}

package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/store"
)

// keysCmd is 'jetpost keys'.
type keysCmd struct {
	Generate keysGenerateCmd `cmd:"" help:"Print a new encryption key, for HUB_ENCRYPTION_KEY."`
	Status   keysStatusCmd   `cmd:"" help:"Say which keys the stored tokens need, and what to do next."`
	Rotate   keysRotateCmd   `cmd:"" help:"Seal all stored tokens with the first key, while workers run."`
}

type keysGenerateCmd struct{}

// Run prints 64 hex digits and nothing else, so that it can be piped.
func (c *keysGenerateCmd) Run(e *env) error {
	key := store.GenerateKey().Reveal()
	return e.say(map[string]string{"key": key}, "%s", key)
}

// withKeyRing opens the ledger for a command about keys.
func (e *env) withKeyRing(work func(*app.KeyRing) error) error {
	cfg, err := e.clientConfig()
	if err != nil {
		return err
	}
	ring, err := cfg.OpenKeyRing(e.ctx)
	if err != nil {
		return err
	}
	return errors.Join(work(ring), ring.Close())
}

type keysStatusCmd struct {
	Verify bool `env:"-" help:"Also open every stored token, and name those that do not open."`

	connectFlags `embed:""`
}

// keyStatus is what 'jetpost keys status' finds.
type keyStatus struct {
	store.KeyState
	Next   string                  `json:"next"`
	Verify *store.RotationProgress `json:"verify,omitempty"`
}

// Run tells which keys are needed. Exit code 1: one is missing, or a row does
// not open.
func (c *keysStatusCmd) Run(e *env) error {
	return e.withKeyRing(func(ring *app.KeyRing) error {
		state, err := ring.State(e.ctx)
		if err != nil {
			return err
		}
		found := keyStatus{KeyState: state, Next: state.Next()}
		if c.Verify {
			verified, err := ring.Verify(e.ctx)
			if err != nil {
				return err
			}
			found.Verify = &verified
		}
		if err := e.show(found, found.text()); err != nil {
			return err
		}
		return found.problem()
	})
}

func (s keyStatus) text() string {
	rows := []string{"KEY\tCONFIGURED\tROWS\tUSE"}
	for _, key := range s.Keys {
		var use []string
		if key.Seals {
			use = append(use, "seals")
		}
		if key.ID == s.Canary {
			use = append(use, "asked for at a start")
		}
		configured := "yes"
		if !key.Configured {
			configured = "MISSING"
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%d\t%s", key.ID, configured, key.Rows, strings.Join(use, ", ")))
	}
	text := align(rows)
	if s.Damaged > 0 {
		text += fmt.Sprintf("%d rows are damaged\n", s.Damaged)
	}
	if s.Verify != nil {
		text += fmt.Sprintf("opened %d of %d rows\n", s.Verify.Seen-s.Verify.Left, s.Verify.Total) + unopened(*s.Verify)
	}
	return text + s.Next + "\n"
}

// problem is the exit code alone where everything was said.
func (s keyStatus) problem() error {
	switch {
	case len(s.Missing()) > 0:
		return fmt.Errorf("%d of the keys that are needed are missing", len(s.Missing()))
	case s.Damaged > 0, s.Verify != nil && s.Verify.Left > 0:
		return errors.New("there are rows that do not open")
	default:
		return nil
	}
}

type keysRotateCmd struct {
	connectFlags `embed:""`
}

// progressEvery is how often a rotation says how far it is.
const progressEvery = 2 * time.Second

// Run seals everything with the first key. It may be interrupted and run again.
func (c *keysRotateCmd) Run(e *env) error {
	return e.withKeyRing(func(ring *app.KeyRing) error {
		told := time.Now()
		done, err := ring.Rotate(e.ctx, func(p store.RotationProgress) {
			if time.Since(told) >= progressEvery {
				told = time.Now()
				fmt.Fprintf(e.stderr, "%d of %d rows, %d sealed anew\n", p.Seen, p.Total, p.Resealed)
			}
		})
		if err != nil {
			return rotationEnded(done, err)
		}
		if err := e.show(done, rotated(done)); err != nil {
			return err
		}
		if done.Left > 0 {
			return &app.HintError{
				Err:  fmt.Errorf("%d rows do not open, and were left as they are", done.Left),
				Help: "see jetpost keys status --verify; keep the old keys until it finds nothing",
			}
		}
		return nil
	})
}

// rotationEnded says how far a rotation came that did not come to its end.
func rotationEnded(done store.RotationProgress, err error) error {
	if done.Total == 0 || app.Hint(err) != "" {
		return err
	}
	return &app.HintError{
		Err:  fmt.Errorf("ended after %d of %d rows, %d sealed anew: %w", done.Seen, done.Total, done.Resealed, err),
		Help: "run jetpost keys rotate again: it goes on where rows are left",
	}
}

func rotated(p store.RotationProgress) string {
	text := fmt.Sprintf("%d rows, %d sealed anew\n", p.Total, p.Resealed) + unopened(p)
	if p.Left == 0 {
		text += "every row is sealed with the first key: the others can be removed from " + store.KeyVariable + "\n"
	}
	return text
}

// unopened names the rows that do not open.
func unopened(p store.RotationProgress) string {
	var text strings.Builder
	for _, row := range p.Unopened {
		fmt.Fprintf(&text, "%s: %s\n", row.Account, row.Error)
	}
	if more := p.Left - len(p.Unopened); more > 0 {
		fmt.Fprintf(&text, "and %d more\n", more)
	}
	return text.String()
}

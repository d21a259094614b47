package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/store"
)

// keysCmd is 'jetpost keys'.
type keysCmd struct {
	Generate keysGenerateCmd `cmd:"" help:"Print a new encryption key for HUB_ENCRYPTION_KEY."`
	Status   keysStatusCmd   `cmd:"" help:"Show which keys the stored tokens need, and the next step of a rotation."`
	Rotate   keysRotateCmd   `cmd:"" help:"Encrypt all stored tokens with the first key, while workers run."`
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
	Verify bool `env:"-" help:"Also decrypt every stored token, and list those that fail."`

	dataFlags `embed:""`
}

// keyStatus is the result of 'jetpost keys status'.
type keyStatus struct {
	store.KeyState
	Next string `json:"next"`
	// Verified tells that every row was decrypted. Otherwise rows are counted by the key
	// ids in them.
	Verified bool                `json:"verified"`
	Unopened []store.UnopenedRow `json:"unopened,omitempty"`
}

// Run shows which keys are needed. Exit code 1: one is missing, or a row does
// not decrypt.
func (c *keysStatusCmd) Run(e *env) error {
	return e.withKeyRing(func(ring *app.KeyRing) error { return c.status(e, ring) })
}

func (c *keysStatusCmd) status(e *env, ring *app.KeyRing) error {
	state, err := ring.State(e.ctx)
	if err != nil {
		return err
	}
	found := keyStatus{KeyState: state}
	if c.Verify {
		opened, err := ring.Verify(e.ctx)
		if err != nil {
			return err
		}
		found.KeyState, found.Verified, found.Unopened = state.Verified(opened), true, opened.Unopened
	}
	found.Next = found.KeyState.Next()
	if err := e.show(found, found.text()); err != nil {
		return err
	}
	return found.problem()
}

func (s keyStatus) text() string {
	rows := []string{"KEY\tCONFIGURED\tROWS\tUSE"}
	for _, key := range s.Keys {
		var use []string
		if key.Seals {
			use = append(use, "seals")
		}
		if key.ID == s.KeyCheck {
			use = append(use, "checked at the start")
		}
		configured := "yes"
		if !key.Configured {
			configured = "MISSING"
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%d\t%s", key.ID, configured, key.Rows, strings.Join(use, ", ")))
	}
	text := align(rows)
	for _, line := range []struct {
		n    int
		what string
	}{
		{s.Behind, "not sealed with the first key"},
		{s.Locked, "in need of a key that is missing"},
		{s.Damaged, "damaged"},
	} {
		if line.n > 0 {
			text += fmt.Sprintf("rows %s: %d\n", line.what, line.n)
		}
	}
	if s.Verified {
		text += fmt.Sprintf("opened %d of %d rows\n", s.Rows-s.Locked-s.Damaged, s.Rows) + unopened(s.Unopened, s.Locked+s.Damaged)
	} else {
		text += fmt.Sprintf("%d rows, counted by the key ids that they carry; --verify opens them\n", s.Rows)
	}
	return text + s.Next + "\n"
}

// problem is the error of a status with missing keys or rows that do not decrypt.
func (s keyStatus) problem() error {
	switch {
	case len(s.Missing()) > 0:
		return fmt.Errorf("%d of the keys that are needed are missing", len(s.Missing()))
	case s.KeyCheckDamaged:
		return errors.New("the key check value is damaged")
	case s.Locked+s.Damaged > 0:
		return errors.New("there are rows that do not open")
	default:
		return nil
	}
}

type keysRotateCmd struct {
	dataFlags `embed:""`
}

// Help is the long help text.
func (c *keysRotateCmd) Help() string {
	return `To change the key while workers run:

1. Add the new key after the old one, HUB_ENCRYPTION_KEY=old,new, and restart all workers, so that each worker can decrypt what another encrypts. With a single worker this step is not needed.

2. Put the new key first, new,old, and restart all workers.

3. Run jetpost keys rotate with new,old. It can be interrupted with Ctrl-C and run again.

4. When the command says that you can, remove the old key and restart the workers.`
}

// rotation is the result of 'jetpost keys rotate'.
type rotation struct {
	store.RotationProgress
	// Completed is false if a signal ended it.
	Completed bool   `json:"completed"`
	Next      string `json:"next"`
}

// Run encrypts all tokens with the first key. Exit code 1: some rows are not
// encrypted with it; 130: a signal ended the command.
func (c *keysRotateCmd) Run(e *env) error {
	p := &rotationLine{out: e.stderr, terminal: isTerminal(e.stderr), told: time.Now()}
	if e.asJSON() {
		p.out = io.Discard
	}
	return e.withKeyRing(func(ring *app.KeyRing) error { return rotate(e, ring, p) })
}

func rotate(e *env, ring *app.KeyRing, p *rotationLine) error {
	done, err := ring.Rotate(e.ctx, p.tell)
	p.end()
	switch {
	case e.ctx.Err() != nil:
		return interrupted(e, done)
	case err != nil:
		return err
	}
	state, err := ring.State(e.ctx)
	if err != nil {
		return err
	}
	r := rotation{RotationProgress: done, Completed: true, Next: state.Verified(done).Next()}
	text := fmt.Sprintf("%d rows, %d sealed anew\n", r.Total, r.Resealed) + unopened(r.Unopened, r.Left()) + r.Next + "\n"
	if err := e.show(r, text); err != nil {
		return err
	}
	return r.problem()
}

// interrupted shows the progress of a rotation that a signal ended.
func interrupted(e *env, done store.RotationProgress) error {
	const next = "run jetpost keys rotate again: it goes on with what is left"
	if err := e.show(rotation{RotationProgress: done, Next: next}, ""); err != nil {
		return err
	}
	return &exitError{code: exitInterrupted, err: &app.HintError{
		Err:  fmt.Errorf("ended after %d of %d rows, %d sealed anew", done.Seen, done.Total, done.Resealed),
		Help: next,
	}}
}

// problem is the error of a rotation that left rows with another key.
func (r rotation) problem() error {
	switch {
	case r.Locked > 0:
		return &app.HintError{
			Err:  fmt.Errorf("%d rows do not open, and were left as they are", r.Left()),
			Help: "add the keys that they need to " + store.KeyVariable + " and run jetpost keys rotate again",
		}
	case r.Damaged > 0:
		return &app.HintError{
			Err:  fmt.Errorf("%d rows are damaged, and were left as they are", r.Damaged),
			Help: "restore them from a backup or connect their accounts again; keep the old keys until jetpost keys status says that they can go",
		}
	case r.Behind > 0:
		return &app.HintError{
			Err:  fmt.Errorf("%d rows have been sealed with another key meanwhile", r.Behind),
			Help: "a worker still has that key first: restart all workers with the new one first, then run jetpost keys rotate again",
		}
	default:
		return nil
	}
}

// progressEvery is how often a rotation prints its progress.
const progressEvery = 2 * time.Second

// rotationLine prints the progress of a rotation: on a terminal in one line that is
// overwritten, otherwise in a new line every progressEvery.
type rotationLine struct {
	out      io.Writer
	terminal bool
	told     time.Time // of the last line
	midLine  bool
}

func (p *rotationLine) tell(done store.RotationProgress) {
	line := fmt.Sprintf("%d of %d rows, %d sealed anew", done.Seen, done.Total, done.Resealed)
	switch {
	case p.terminal:
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
		p.midLine = true
	case time.Since(p.told) >= progressEvery:
		fmt.Fprintln(p.out, line)
		p.told = time.Now()
	}
}

// end ends the line on a terminal.
func (p *rotationLine) end() {
	if p.midLine {
		fmt.Fprintln(p.out)
		p.midLine = false
	}
}

// unopened lists the rows that do not decrypt: the first of all.
func unopened(rows []store.UnopenedRow, all int) string {
	var text strings.Builder
	for _, row := range rows {
		fmt.Fprintln(&text, row.Error)
	}
	if more := all - len(rows); more > 0 {
		fmt.Fprintf(&text, "and %d more\n", more)
	}
	return text.String()
}

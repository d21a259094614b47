package main

import (
	"fmt"

	"github.com/jetpost/jetpost/store"
)

// keysCmd is 'jetpost keys'.
type keysCmd struct {
	Generate keysGenerateCmd `cmd:"" help:"Print a new encryption key, for HUB_ENCRYPTION_KEY."`
}

type keysGenerateCmd struct{}

// Run prints 64 hex digits and nothing else, so that it can be piped.
func (c *keysGenerateCmd) Run(e *env) error {
	_, err := fmt.Fprintln(e.stdout, store.GenerateKey().Reveal())
	return err
}

package main

import (
	"github.com/jetpost/jetpost/store"
)

// keysCmd is 'jetpost keys'.
type keysCmd struct {
	Generate keysGenerateCmd `cmd:"" help:"Print a new encryption key, for HUB_ENCRYPTION_KEY."`
}

type keysGenerateCmd struct{}

// Run prints 64 hex digits and nothing else, so that it can be piped.
func (c *keysGenerateCmd) Run(e *env) error {
	key := store.GenerateKey().Reveal()
	return e.say(map[string]string{"key": key}, "%s", key)
}

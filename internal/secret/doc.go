// Package secret holds values that must never be printed: tokens, keys and
// passwords. It keeps them from logs, errors and JSON; it never encrypts them
// and never clears them from memory.
package secret

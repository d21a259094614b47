package control

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// The cost of a password's hash, as RFC 9106 and OWASP have it for servers: 19 MiB and two
// passes. A stored hash has its own, so that these may grow.
const (
	argonMemory  = 19 << 10 // KiB
	argonPasses  = 2
	argonThreads = 1
	argonSalt    = 16 // bytes
	argonKey     = 32 // bytes

	// maxArgonMemory and maxArgonPasses bound what a stored hash may cost.
	maxArgonMemory = 1 << 20 // KiB
	maxArgonPasses = 100
	// maxHashes bounds the hashes that one process makes at once, and so their memory.
	maxHashes = 4
)

// passwords makes and compares the hashes of passwords, a few at once.
type passwords struct {
	slots chan struct{}
	key   func(password, salt []byte, passes, memory uint32, threads uint8, length uint32) []byte
}

func newPasswords() *passwords {
	return &passwords{slots: make(chan struct{}, maxHashes), key: argon2.IDKey}
}

// wait takes a slot, which free gives back.
func (p *passwords) wait(ctx context.Context) (free func(), err error) {
	select {
	case p.slots <- struct{}{}:
		return func() { <-p.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hash is what is stored of a password: $argon2id$v=19$m=...,t=...,p=...$salt$key.
func (p *passwords) hash(ctx context.Context, password string) (string, error) {
	free, err := p.wait(ctx)
	if err != nil {
		return "", err
	}
	defer free()
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // never fails: it ends the program instead
	key := p.key([]byte(password), salt, argonPasses, argonMemory, argonThreads, argonKey)
	encode := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonPasses, argonThreads, encode(salt), encode(key)), nil
}

// match tells whether a password is the one of a hash. Without a hash it takes as long and
// is not.
func (p *passwords) match(ctx context.Context, password, hash string) (bool, error) {
	free, err := p.wait(ctx)
	if err != nil {
		return false, err
	}
	defer free()
	known := hash != ""
	is := argonHash{memory: argonMemory, passes: argonPasses, threads: argonThreads, salt: make([]byte, argonSalt), key: make([]byte, argonKey)}
	if known {
		if is, err = readArgon(hash); err != nil {
			return false, err
		}
	}
	key := p.key([]byte(password), is.salt, is.passes, is.memory, is.threads, uint32(len(is.key)))
	return subtle.ConstantTimeCompare(key, is.key) == 1 && known, nil
}

// argonHash is a hash that was stored.
type argonHash struct {
	memory, passes uint32
	threads        uint8
	salt, key      []byte
}

func readArgon(hash string) (is argonHash, err error) {
	wrong := errors.New("read password hash: is none of argon2id")
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return is, wrong
	}
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &is.memory, &is.passes, &is.threads); err != nil || n != 3 {
		return is, wrong
	}
	if is.memory > maxArgonMemory || is.passes == 0 || is.passes > maxArgonPasses || is.threads == 0 {
		return is, wrong
	}
	if is.salt, err = base64.RawStdEncoding.DecodeString(parts[4]); err != nil {
		return is, wrong
	}
	if is.key, err = base64.RawStdEncoding.DecodeString(parts[5]); err != nil || len(is.key) < argonSalt {
		return is, wrong
	}
	return is, nil
}

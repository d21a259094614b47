package control_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/publishers"
)

// picture is what X takes for one by its first bytes.
func picture(size int) []byte {
	file := make([]byte, size)
	_, _ = rand.Read(file)
	copy(file, "\x89PNG\r\n\x1a\n")
	return file
}

// object reads a media object.
func (b *bundle) object(name string) []byte {
	b.Helper()
	objects, err := publishers.MediaStore(b.Context(), b.js, jetpost.Names{})
	b.must(err)
	file, err := objects.Get(b.Context(), name)
	b.must(err)
	read, err := io.ReadAll(file)
	b.must(err)
	return read
}

// put stores a part of a file.
func put(ctx context.Context, c *client.Client, account string, in jetpost.MediaPut) (stored jetpost.MediaStored, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return stored, err
	}
	answer, err := c.Call(ctx, jetpost.OpMediaPut, account, body)
	if err == nil {
		err = json.Unmarshal(answer, &stored)
	}
	return stored, err
}

// TestMediaPut: a file of several parts, which several workers take, is one object. What X
// takes under no circumstances is refused, and each file is noted once.
func TestMediaPut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	b.serve("two", nil)
	ctx := jetpost.WithActor(t.Context(), "user:anna")
	for _, size := range []int{100, jetpost.MaxMediaPart, 2*jetpost.MaxMediaPart + 1} {
		file := picture(size)
		stored, err := b.client.MediaPut(ctx, "acme", bytes.NewReader(file))
		b.must(err)
		sum := sha256.Sum256(file)
		if stored.Bytes != size || stored.Type != "image/png" || stored.SHA256 != hex.EncodeToString(sum[:]) || jetpost.ObjectOwner(stored.Object) != "acme" {
			t.Errorf("%d bytes: stored %+v", size, stored)
		}
		if !bytes.Equal(b.object(stored.Object), file) {
			t.Errorf("%d bytes: others are read", size)
		}
		if got := b.noted(jetpost.AuditList{Limit: 1}); got != "user:anna media.put acme "+stored.Object+" done" {
			t.Errorf("noted %q", got)
		}
	}
	anybody, err := b.client.MediaPut(ctx, "", bytes.NewReader(picture(100)))
	if err != nil || jetpost.ObjectOwner(anybody.Object) != "" {
		t.Errorf("without an account: %+v, %v", anybody, err)
	}
	for what, wrong := range map[string]struct {
		account string
		file    io.Reader
		code    jetpost.ErrorCode
	}{
		"no account": {"nobody", bytes.NewReader(picture(100)), jetpost.ErrNotFound}, "a page": {"acme", strings.NewReader("<html>"), jetpost.ErrInvalid},
		"nothing": {"acme", strings.NewReader(""), jetpost.ErrInvalid}, "too large": {"acme", bytes.NewReader(picture(5<<20 + 1)), jetpost.ErrInvalid},
		"half a file": {"acme", io.MultiReader(bytes.NewReader(picture(100)), broken{}), jetpost.ErrInvalid},
	} {
		if stored, err := b.client.MediaPut(ctx, wrong.account, wrong.file); codeOf(err) != wrong.code || stored.Object != "" {
			t.Errorf("%s: %+v, %v", what, stored, err)
		}
	}
	if got := strings.Count(b.noted(jetpost.AuditList{}), "\n") + 1; got != 4 {
		t.Errorf("%d files are noted, want 4", got)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestMediaPutParts: a part that comes twice, at once or late, is stored once; one that is not
// the next of this very file is refused.
func TestMediaPutParts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	b.serve("two", nil)
	ctx, file := t.Context(), picture(300)
	first := jetpost.MediaPut{OperationID: "file", Data: file[:100], More: true}
	second := jetpost.MediaPut{OperationID: "file", Offset: 100, Data: file[100:200], More: true}
	last := jetpost.MediaPut{OperationID: "file", Offset: 200, Data: file[200:]}
	for _, in := range []jetpost.MediaPut{first, second, last} {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if stored, err := put(ctx, b.client, "acme", in); err != nil || stored.Bytes != in.Offset+100 {
					t.Errorf("part at %d: %+v, %v", in.Offset, stored, err)
				}
			})
		}
		all.Wait()
	}
	done, err := put(ctx, b.client, "acme", last)
	if err != nil || !bytes.Equal(b.object(done.Object), file) {
		t.Errorf("stored %+v, %v", done, err)
	}
	other := slices.Clone(file[100:200])
	other[0]++
	for what, wrong := range map[string]struct {
		account string
		in      jetpost.MediaPut
		code    jetpost.ErrorCode
	}{
		"another account's file": {"", second, jetpost.ErrConflict}, "an earlier part": {"acme", first, jetpost.ErrConflict},
		"a gap":       {"acme", jetpost.MediaPut{OperationID: "gap", Offset: 7, Data: file}, jetpost.ErrConflict},
		"other bytes": {"acme", jetpost.MediaPut{OperationID: "file", Offset: 200, Data: other, More: true}, jetpost.ErrOperationReused},
		"another end": {"acme", jetpost.MediaPut{OperationID: "file", Offset: 200, Data: other}, jetpost.ErrOperationReused},
		"no id":       {"acme", jetpost.MediaPut{Data: file, More: true}, jetpost.ErrInvalid},
		"no data":     {"acme", jetpost.MediaPut{OperationID: "none"}, jetpost.ErrInvalid},
		"a negative":  {"acme", jetpost.MediaPut{OperationID: "none", Offset: -1, Data: file}, jetpost.ErrInvalid},
		"a large one": {"acme", jetpost.MediaPut{OperationID: "none", Data: picture(jetpost.MaxMediaPart + 1)}, jetpost.ErrInvalid},
		"too far":     {"acme", jetpost.MediaPut{OperationID: "none", Offset: jetpost.MaxMediaBytes, Data: file}, jetpost.ErrInvalid},
	} {
		if stored, err := put(ctx, b.client, wrong.account, wrong.in); codeOf(err) != wrong.code {
			t.Errorf("%s: %+v, %v", what, stored, err)
		}
	}
	if got := b.noted(jetpost.AuditList{}); got != "nats media.put acme "+done.Object+" done" {
		t.Errorf("noted\n%s", got)
	}
}

package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// MediaPut stores a media file or, if more follows, a part of it. How far a file is stored
// stands in the object store, so that each part may come to another worker. The file becomes
// an object with its last part, which is noted as the change.
func (c *Control) MediaPut(ctx context.Context, account string, in jetpost.MediaPut) (jetpost.MediaStored, error) {
	if c.JS == nil {
		return jetpost.MediaStored{}, &Error{Code: jetpost.ErrUnsupported, Err: errors.New("store media: there is no NATS here")}
	}
	op, err := call(jetpost.OpMediaPut, account, in.OperationID, in)
	if err != nil {
		return jetpost.MediaStored{}, err
	}
	part, err := c.mediaPart(ctx, account, in)
	if err != nil {
		return jetpost.MediaStored{}, err
	}
	if !in.More && op.ID != "" {
		if was, repeated, err := done[jetpost.MediaStored](ctx, c, op); repeated || err != nil {
			return was, err
		}
	}
	objects, err := publishers.OpenMediaObjects(ctx, c.JS, c.Names)
	if err != nil {
		return jetpost.MediaStored{}, err
	}
	place, err := objects.PutPart(ctx, part)
	if err != nil {
		return jetpost.MediaStored{}, partError(err)
	}
	stored := jetpost.MediaStored{Bytes: place.Bytes}
	if in.More {
		return stored, nil
	}
	if most := xapi.MediaLimit(place.Type); int64(place.Bytes) > most {
		return stored, &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("the file has %d bytes, more than the %d that X takes of %s", place.Bytes, most, place.Type)}
	}
	sum, err := place.Sum()
	if err != nil {
		return stored, err
	}
	stored.Object, stored.SHA256, stored.Type = jetpost.OwnedObject(account, part.Upload), hex.EncodeToString(sum), place.Type
	if err := objects.Finish(ctx, stored.Object, part.Upload, place); err != nil {
		return stored, err
	}
	op.Target = stored.Object
	stored, _, err = operate(ctx, c, op, func(context.Context, store.Changes) (jetpost.MediaStored, error) { return stored, nil })
	return stored, err
}

// mediaPart is the part of a call. Its upload's name is made of account and operation_id, so
// that no other account adds to it.
func (c *Control) mediaPart(ctx context.Context, account string, in jetpost.MediaPut) (publishers.MediaPart, error) {
	refuse := func(format string, args ...any) (publishers.MediaPart, error) {
		return publishers.MediaPart{}, &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf(format, args...)}
	}
	id := in.OperationID
	switch {
	case id == "" && (in.More || in.Offset > 0):
		return refuse("operation_id: is missing, which names the parts of a file")
	case in.Offset+len(in.Data) > jetpost.MaxMediaBytes:
		return refuse("the file has more than %d bytes", jetpost.MaxMediaBytes)
	case id == "":
		id = uuid.NewString()
	}
	sum := sha256.Sum256([]byte(account + "\x00" + id))
	part := publishers.MediaPart{Upload: hex.EncodeToString(sum[:16]), Offset: in.Offset, Data: in.Data}
	if in.Offset > 0 {
		return part, nil
	}
	part.Type = xapi.MediaType(in.Data[:min(len(in.Data), xapi.SniffBytes)])
	if xapi.MediaLimit(part.Type) == 0 {
		return refuse("data: is %s; X takes %s", part.Type, xapi.MediaKinds)
	}
	if account != "" {
		if _, err := c.Ledger.Account(ctx, account); err != nil {
			return part, accountError(account, err)
		}
	}
	return part, nil
}

// partError tells a part that is not the next one by a code.
func partError(err error) error {
	var part *publishers.PartError
	switch {
	case !errors.As(err, &part):
		return err
	case part.Other:
		return &Error{Code: jetpost.ErrOperationReused, Err: err, Help: "give each file an operation_id of its own"}
	}
	return conflict(fmt.Sprintf("go on with the part at offset %d, or begin under another operation_id", part.Bytes), "%w", err)
}

// pruneWithin is how long a call prunes requests, so that the rest of it has time, too.
const pruneWithin = 45 * time.Second

// AppPrune removes what finished long ago, as workers do by themselves, as much as one call
// has time for.
func (c *Control) AppPrune(ctx context.Context, in jetpost.AppPrune) (jetpost.Pruned, error) {
	keep, err := time.ParseDuration(in.Keep)
	if err == nil && keep < store.MinKeepFinished {
		err = fmt.Errorf("%s is shorter than %dd", keep, int(store.MinKeepFinished.Hours())/24)
	}
	switch {
	case err != nil:
		return jetpost.Pruned{}, &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("keep: %w", err)}
	case c.JS == nil:
		return jetpost.Pruned{}, &Error{Code: jetpost.ErrUnsupported, Err: errors.New("prune: there is no NATS here")}
	}
	op, err := call(jetpost.OpAppPrune, "", in.OperationID, in)
	if err != nil {
		return jetpost.Pruned{}, err
	}
	if op.ID != "" && !in.DryRun {
		if was, repeated, err := done[jetpost.Pruned](ctx, c, op); repeated || err != nil {
			return was, err
		}
	}
	report, err := consumers.Prune(ctx, consumers.PruneConfig{
		Ledger: c.Ledger, JetStream: c.JS, Names: c.Names, Worker: c.Worker + "/" + string(jetpost.OpAppPrune), Keep: keep, Within: pruneWithin, Log: c.Log,
	}, in.DryRun)
	pruned := jetpost.Pruned(report)
	if errors.Is(err, consumers.ErrPruning) {
		return pruned, &Error{
			Code: jetpost.ErrBusy, Err: err,
			Help: "a worker does so every ten minutes by its --keep-finished, and goes on by itself; see what is left with: jetpost prune --dry-run",
		}
	}
	if err != nil || in.DryRun {
		return pruned, DatabaseError(err)
	}
	pruned, _, err = operate(ctx, c, op, func(context.Context, store.Changes) (jetpost.Pruned, error) { return pruned, nil })
	return pruned, err
}

package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// A pair is kept on a disk that is full, in the room that was set aside for it, and what
// was used is set aside anew once there is room.
func TestLifeboatOnFullDisk(t *testing.T) {
	t.Parallel()
	const size = 2 << 20 // bytes
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("a disk to fill is a small tmpfs, which only root may mount: %v; run this test as root, in a container for instance", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	boat := NewLifeboat(filepath.Join(dir, "boat"), "ledger", lifeboatSealer(t))
	if err := boat.Prepare(); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, bytes.Repeat([]byte("x"), size), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	claim, pair, at := lifeboatPair()
	claimed := func(n int) Token {
		claim := claim
		claim.Version = int64(n)
		return claim
	}
	var all sync.WaitGroup
	for n := range spares {
		all.Go(func() {
			if err := boat.Keep(claimed(n), pair, at); err != nil {
				t.Errorf("pair %d: %v", n, err)
			}
		})
	}
	all.Wait()
	rescued, err := boat.Load()
	if err != nil || len(rescued) != spares {
		t.Fatalf("%d pairs of %d were kept: %v", len(rescued), spares, err)
	}
	if err := boat.Keep(claimed(spares), pair, at); err == nil {
		t.Error("one more was kept, without room")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	for _, one := range rescued {
		if one.Pair != pair {
			t.Errorf("pair %d came back as %+v", one.Claim.Version, one.Pair)
		}
		if err := boat.Drop(one.Claim); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := list(boat.berth, sparePrefix, halfSuffix); err != nil || len(left) != spares {
		t.Errorf("%d of %d are set aside again: %v", len(left), spares, err)
	}
	if err := boat.Close(); err != nil {
		t.Error(err)
	}
	if exists(boat.berth) {
		t.Error("the berth is still there")
	}
}

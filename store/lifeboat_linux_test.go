package store

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/jetpost/jetpost/internal/disktest"
)

// On a full disk a pair is stored in reserved room, and the used room is reserved again
// once there is space.
func TestLifeboatOnFullDisk(t *testing.T) {
	t.Parallel()
	disk := disktest.New(t, 2<<20)
	if disk == nil {
		return
	}
	boat := NewLifeboat(filepath.Join(disk.Dir, "boat"), "ledger", lifeboatSealer(t))
	if err := boat.Prepare(); err != nil {
		t.Fatal(err)
	}
	disk.Fill(0)
	claim, pair, at := lifeboatPair()
	claimed := func(n int) Token {
		claim := claim
		claim.Version = int64(n)
		return claim
	}
	if err := boat.Write(claim, pair, at); err == nil || exists(boat.path(claim)) {
		t.Errorf("a pair was written without room: %v", err)
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
	rescued, _, err := boat.Load()
	if err != nil || len(rescued) != spares {
		t.Fatalf("%d pairs of %d were stored: %v", len(rescued), spares, err)
	}
	if err := boat.Keep(claimed(spares), pair, at); err == nil {
		t.Error("one more was stored, without room")
	}
	for n, one := range rescued {
		if n == spares/2 { // until then there is no room for every spare file
			disk.Free()
		}
		if one.Pair != pair {
			t.Errorf("pair %d came back as %+v", one.Claim.Version, one.Pair)
		}
		if err := boat.Drop(one.Claim); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := list(boat.workerDir, sparePrefix, halfSuffix); err != nil || len(left) != spares {
		t.Errorf("%d of %d are set aside again: %v", len(left), spares, err)
	}
	if err := boat.Close(); err != nil {
		t.Error(err)
	}
	if exists(boat.workerDir) {
		t.Error("the worker directory is still there")
	}
}

package app

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost/internal/testkit"
)

// TestDiskIsMeasuredAtTimes: a disk is measured once in a while, and what was found is
// found until then.
func TestDiskIsMeasuredAtTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("full")
		measured := 0
		check := measuredAtTimes(func() error {
			if measured++; measured == 1 {
				return nil
			}
			return full
		})
		for range 3 {
			testkit.Must(t, check())
		}
		<-time.After(roomHolds)
		for range 3 {
			testkit.Equal(t, "once it is full", check(), full)
		}
		testkit.Equal(t, "measured", measured, 2)
	})
}

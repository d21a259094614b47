package app

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost/internal/testkit"
)

// TestRoomCheckIsThrottled: the disks are measured once in an interval, and the
// result is returned in between.
func TestRoomCheckIsThrottled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("full")
		measured := 0
		check := throttle(func() error {
			if measured++; measured == 1 {
				return nil
			}
			return full
		})
		for range 3 {
			testkit.Must(t, check())
		}
		<-time.After(roomInterval)
		for range 3 {
			testkit.Equal(t, "once it is full", check(), full)
		}
		testkit.Equal(t, "measured", measured, 2)
	})
}

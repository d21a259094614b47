package app

import (
	"testing"
	"time"

	"github.com/jetpost/jetpost/consumers"
)

func TestClockOf(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		skew time.Duration
		want string
	}{
		{"agrees", 0, CheckOK},
		{"behind, but little", -consumers.MaxSkew / 2, CheckOK},
		{"ahead", 2 * consumers.MaxSkew, CheckWrong},
		{"behind", -2 * consumers.MaxSkew, CheckWrong},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			before := time.Now()
			if got := clockOf("X's", before, before.Add(-test.skew)); got.Verdict != test.want || (got.Do == "") != (test.want == CheckOK) {
				t.Errorf("got %+v, want %s", got, test.want)
			}
		})
	}
}

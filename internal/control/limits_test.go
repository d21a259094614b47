package control_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/publishers"
)

func TestLimits(t *testing.T) {
	t.Parallel()
	told := in(-30)
	counted := window("b", "15min", 100, 7, 60, 0)
	counted.Estimated = true
	over := window("a", "15min", 100, 3, 0, 900)
	over.ToldAt = told
	pauses := []publishers.Pause{
		{Target: "publish", Since: in(-60), Reason: jetpost.Reason{Code: jetpost.CodeXOutage}, NextProbeAt: in(0), Wait: time.Minute},
		{Target: "refresh", Since: in(-60), Reason: jetpost.Reason{Code: jetpost.CodeAppMisconfigured, Detail: "no", Until: in(9)}},
		{Target: "media", Since: in(-60), Reason: jetpost.Reason{Code: jetpost.CodeUsageCapped, Until: in(0)}}, // over
	}
	got := control.NewLimits(noon, "a", []publishers.Window{window("", "app_24h", 9, 0, 60, 0), over, counted}, pauses)
	want := jetpost.Limits{
		Now: noon, X: jetpost.Breaker{State: "unreachable", Since: in(-60), AskedAgain: in(0)},
		Pauses: []jetpost.LimitPause{
			{Target: "publish", Code: jetpost.CodeXOutage, Since: in(-60), AskedAgain: in(0), WaitSeconds: 60},
			{Target: "refresh", Code: jetpost.CodeAppMisconfigured, Detail: "no", Since: in(-60), Until: in(9), Do: control.Advice(jetpost.CodeAppMisconfigured)},
		},
		Windows: []jetpost.RateWindow{
			{Endpoint: "POST /2/tweets", Kind: "app_24h", Limit: 9, Reset: in(60), Source: "x"},
			{Account: "a", Endpoint: "POST /2/tweets", Kind: "15min", Limit: 100, Remaining: 100, Available: true, LengthSeconds: 900, Source: "x", ToldAt: told},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("limits, - is wanted:\n%s", diff)
	}
	all := control.NewLimits(noon, "", []publishers.Window{counted}, nil)
	if diff := cmp.Diff(jetpost.Limits{
		Now: noon, X: jetpost.Breaker{State: "reachable"}, Pauses: []jetpost.LimitPause{},
		Windows: []jetpost.RateWindow{{Account: "b", Endpoint: "POST /2/tweets", Kind: "15min", Limit: 100, Remaining: 7, Available: true, Reset: in(60), Source: "estimated"}},
	}, all); diff != "" {
		t.Errorf("limits of all, - is wanted:\n%s", diff)
	}
}

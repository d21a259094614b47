package app_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/publishers"
)

func TestLimits(t *testing.T) {
	t.Parallel()
	told := in(-30)
	counted := window("b", "15min", 100, 7, 60, 0)
	counted.Estimated = true
	over := window("a", "15min", 100, 3, 0, 900)
	over.ToldAt = told
	stops := []publishers.Pause{
		{Target: "publish", Since: in(-60), Reason: jetpost.Reason{Code: jetpost.CodeXOutage}, NextProbeAt: in(0), Wait: time.Minute},
		{Target: "refresh", Since: in(-60), Reason: jetpost.Reason{Code: jetpost.CodeAppMisconfigured, Detail: "no", Until: in(9)}},
		{Target: "media", Since: in(-60), Reason: jetpost.Reason{Code: jetpost.CodeUsageCapped, Until: in(0)}}, // over
	}
	got := app.NewLimits(noon, "a", []publishers.Window{window("", "app_24h", 9, 0, 60, 0), over, counted}, stops)
	want := app.Limits{
		Now: noon, X: app.Breaker{State: "open", Since: in(-60), AskedAgain: in(0)},
		Stops: []app.LimitPause{
			{Target: "publish", Code: jetpost.CodeXOutage, Since: in(-60), AskedAgain: in(0), WaitSeconds: 60},
			{Target: "refresh", Code: jetpost.CodeAppMisconfigured, Detail: "no", Since: in(-60), Until: in(9), Do: app.Advice(jetpost.CodeAppMisconfigured)},
		},
		Windows: []app.RateWindow{
			{Endpoint: "POST /2/tweets", Kind: "app_24h", Limit: 9, Reset: in(60), Source: "x"},
			{Account: "a", Endpoint: "POST /2/tweets", Kind: "15min", Limit: 100, Remaining: 100, Open: true, LengthSeconds: 900, Source: "x", ToldAt: told},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("limits, - is wanted:\n%s", diff)
	}
	all := app.NewLimits(noon, "", []publishers.Window{counted}, nil)
	if diff := cmp.Diff(app.Limits{
		Now: noon, X: app.Breaker{State: "closed"}, Stops: []app.LimitPause{},
		Windows: []app.RateWindow{{Account: "b", Endpoint: "POST /2/tweets", Kind: "15min", Limit: 100, Remaining: 7, Reset: in(60), Source: "estimated"}},
	}, all); diff != "" {
		t.Errorf("limits of all, - is wanted:\n%s", diff)
	}
}

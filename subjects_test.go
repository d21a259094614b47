package jetpost_test

import (
	"strings"
	"testing"

	"github.com/jetpost/jetpost"
)

func TestNewNamesRefusesWhatIsNoToken(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"a.b", "a b", "*", ">", "é", "a\n", strings.Repeat("x", 33)} {
		if _, err := jetpost.NewNames(prefix); err == nil {
			t.Errorf("prefix %q was taken", prefix)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	staging, err := jetpost.NewNames("Staging-1_x")
	if err != nil {
		t.Fatal(err)
	}
	var plain jetpost.Names
	// What each name is without prefix; with one, streams put it in front
	// with "_" and subjects with ".".
	streams := []struct {
		of   func(jetpost.Names) string
		want string
	}{
		{jetpost.Names.EventsStream, "JETPOST_EVENTS"},
		{jetpost.Names.FailedStream, "JETPOST_FAILED"},
		{jetpost.Names.JobsStream, "JETPOST_JOBS"},
		{jetpost.Names.LanesStream, "JETPOST_LANES"},
		{jetpost.Names.LimitsBucket, "JETPOST_LIMITS"},
		{jetpost.Names.MediaBucket, "JETPOST_MEDIA"},
		{jetpost.Names.RefreshStream, "JETPOST_REFRESH"},
		{jetpost.Names.ScheduleStream, "JETPOST_SCHEDULE"},
	}
	for _, s := range streams {
		if got := s.of(plain); got != s.want {
			t.Errorf("got %s, want %s", got, s.want)
		}
		if got, want := s.of(staging), "Staging-1_x_"+s.want; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	subjects := []struct {
		of   func(jetpost.Names) string
		want string
	}{
		{func(n jetpost.Names) string { return n.PublishRequest("") }, "publish.request"},
		{func(n jetpost.Names) string { return n.PublishRequest("acme") }, "publish.request.acme"},
		{func(n jetpost.Names) string { return n.PublishIntake("3", "*") }, "publish.intake.3.*"},
		{func(n jetpost.Names) string { return n.PublishWake("acme") }, "publish.wake.acme"},
		{func(n jetpost.Names) string { return n.ScheduleWake("acme") }, "schedule.wake.acme"},
		{func(n jetpost.Names) string { return n.DuePublish("acme") }, "due.publish.acme"},
		{jetpost.Names.ScheduleRefresh, "schedule.refresh"},
		{func(n jetpost.Names) string { return n.DueRefresh("tick") }, "due.refresh.tick"},
		{jetpost.Names.RefreshTick, "refresh.tick"},
		{jetpost.Names.RefreshBatch, "refresh.batch"},
		{jetpost.Names.RefreshRequest, "refresh.request"},
		{func(n jetpost.Names) string { return n.PublishFailed("acme", "a") }, "publish.failed.acme.a"},
		{func(n jetpost.Names) string { return n.PublishRefused("", "7") }, "publish.refused._.7"},
		{func(n jetpost.Names) string { return n.PublishRefused("acme", "7") }, "publish.refused.acme.7"},
		{func(n jetpost.Names) string { return n.RefreshFailed("acme") }, "refresh.failed.acme"},
		{func(n jetpost.Names) string { return n.EventSubject(jetpost.EventAppPaused, "", "") }, "jetpost.event.app.paused"},
		{func(n jetpost.Names) string { return n.EventSubject(jetpost.EventAccountRecovered, "acme", "") }, "jetpost.event.account.recovered.acme"},
		{func(n jetpost.Names) string { return n.EventSubject(jetpost.EventRequestHeld, "acme", "a") }, "jetpost.event.request.held.acme.a"},
		{func(n jetpost.Names) string { return n.RefusedEvent("", 7) }, "jetpost.event.request.refused._.sequence.7"},
		{func(n jetpost.Names) string { return n.RequestEvents("acme", "a") }, "jetpost.event.request.*.acme.a"},
		{jetpost.Names.AllEvents, "jetpost.event.>"},
	}
	for _, s := range subjects {
		if got := s.of(plain); got != s.want {
			t.Errorf("got %s, want %s", got, s.want)
		}
		got := s.of(staging)
		if want := "Staging-1_x." + s.want; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if trimmed := staging.Trim(got); trimmed != s.want {
			t.Errorf("trimmed to %s, want %s", trimmed, s.want)
		}
		if trimmed := plain.Trim(s.want); trimmed != s.want {
			t.Errorf("trimmed to %s, want %s", trimmed, s.want)
		}
	}
	if got, want := staging.Trim("Staging-1_xy.publish.request"), "Staging-1_xy.publish.request"; got != want {
		t.Errorf("another installation's subject was trimmed to %s", got)
	}
}

// A refusal must not become the last event of the request whose repeat was
// refused.
func TestRefusedEventIsNoEventOfItsRequest(t *testing.T) {
	t.Parallel()
	var n jetpost.Names
	refused := strings.Split(n.RefusedEvent("acme", 7), ".")
	events := strings.Split(n.RequestEvents("acme", "sequence"), ".")
	if len(refused) == len(events) {
		t.Errorf("%v may match %v", refused, events)
	}
}

func TestConsumerIntake(t *testing.T) {
	t.Parallel()
	if got := jetpost.ConsumerIntake(jetpost.Partitions - 1); got != "intake-7" {
		t.Errorf("got %s, want intake-7", got)
	}
}

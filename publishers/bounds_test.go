package publishers

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// bounds are what the table of docs/OPERATING.md has to say of a stream: bytes, messages
// and age, each "" where there is no bound.
func bounds(s jetstream.StreamConfig) (cells [3]string) {
	switch {
	case s.MaxBytes >= 1<<30:
		cells[0] = fmt.Sprintf("%d GiB", s.MaxBytes>>30)
	case s.MaxBytes > 0:
		cells[0] = fmt.Sprintf("%d MiB", s.MaxBytes>>20)
	}
	switch {
	case s.MaxMsgs >= 1_000_000:
		cells[1] = fmt.Sprintf("%d,%03d,%03d", s.MaxMsgs/1_000_000, s.MaxMsgs/1000%1000, s.MaxMsgs%1000)
	case s.MaxMsgs > 0:
		cells[1] = fmt.Sprintf("%d,%03d", s.MaxMsgs/1000, s.MaxMsgs%1000)
	case s.MaxMsgsPerSubject == 1, strings.Contains(s.Name, "SCHEDULE"): // a schedule replaces the one before
		cells[1] = "one per"
	}
	if s.MaxAge > 0 {
		cells[2] = fmt.Sprintf("%d days", s.MaxAge/(24*time.Hour))
	}
	return cells
}

// TestBoundsAreDocumented: the operator's table of bounds is that of the settings.
func TestBoundsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/OPERATING.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) == 7 && strings.Contains(cells[1], "JETPOST_") {
			rows[strings.Trim(cells[1], " `")] = cells[2:]
		}
	}
	names, err := jetpost.NewNames("")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := TopologyConfig{Names: names, LedgerID: testLedger}.complete()
	if err != nil {
		t.Fatal(err)
	}
	streams := append(cfg.streams(1<<20), cfg.mediaStream())
	for _, s := range streams {
		row := rows[s.Name]
		if row == nil {
			t.Errorf("the table lacks %s", s.Name)
			continue
		}
		for i, want := range bounds(s) {
			got := strings.TrimSpace(row[i])
			if want == "" && got != "" || !strings.HasPrefix(got, want) {
				t.Errorf("%s: the table says %q, the settings %q", s.Name, got, want)
			}
		}
		refuses := s.Discard == jetstream.DiscardNew && (s.MaxBytes > 0 || s.MaxMsgs > 0)
		if full := strings.TrimSpace(row[3]); refuses != strings.HasSuffix(full, "producers are refused") {
			t.Errorf("%s: when it is full, the table says %q", s.Name, full)
		}
		delete(rows, s.Name)
	}
	for name := range rows {
		t.Errorf("%s is no stream", name)
	}
}

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
)

// asJSON tells whether the output format is JSON.
func (e *env) asJSON() bool { return e.cli.Output == "json" }

// show prints one value: as a JSON object on one line, or as text.
func (e *env) show(value any, text string) error {
	if e.asJSON() {
		encoder := json.NewEncoder(e.stdout)
		encoder.SetEscapeHTML(false) // the output is not part of a page
		return encoder.Encode(value)
	}
	_, err := io.WriteString(e.stdout, text)
	return err
}

// say prints one value: as a JSON object on one line, or as a line of text.
func (e *env) say(value any, format string, args ...any) error {
	return e.show(value, fmt.Sprintf(format+"\n", args...))
}

// list prints values: one JSON object per line, or a table. Tabs separate the cells of
// the header and of a row.
func list[T any](e *env, values []T, header string, row func(T) string) error {
	if e.asJSON() {
		for _, v := range values {
			if err := e.show(v, ""); err != nil {
				return err
			}
		}
		return nil
	}
	rows := []string{header}
	for _, v := range values {
		rows = append(rows, row(v))
	}
	return e.show(nil, align(rows))
}

// align aligns the columns of rows. Tabs separate the cells of a row.
func align(rows []string) string {
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		_, _ = io.WriteString(table, row+"\n") // a builder returns no error
	}
	_ = table.Flush()
	return b.String()
}

// localTime is a time in the local zone, or "-" if it is zero.
func localTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.RFC3339)
}

// dollars is an amount as X's price list has it.
func dollars(usd float64) string { return fmt.Sprintf("$%.3f", usd) }

// reasonText is a reason on one line, or "" if there is none.
func reasonText(r *jetpost.Reason) string {
	if r == nil {
		return ""
	}
	text := string(r.Code)
	if r.Detail != "" {
		text += ": " + r.Detail
	}
	return text
}

// mistakes is a usage error with all mistakes of a command line, one per line; nil if
// there are none.
func mistakes(what string, list ...string) error {
	if len(list) == 0 {
		return nil
	}
	return &exitError{code: exitUsage, err: fmt.Errorf("%s:\n  %s", what, strings.Join(list, "\n  "))}
}

// problems are the mistakes in a request, one per line.
func problems(list []jetpost.Problem) []string {
	lines := make([]string, len(list))
	for i, p := range list {
		lines[i] = strings.TrimSpace(p.Pointer + " " + p.Message)
	}
	return lines
}

// whichRequest makes an ambiguous id a usage error.
func whichRequest(err error) error {
	if ambiguous := new(app.AmbiguousError); errors.As(err, &ambiguous) || failedAs(err, jetpost.ErrAmbiguous) {
		return &exitError{code: exitUsage, err: err}
	}
	return err
}

// maxExcerpt bounds the text of a post in a list.
const maxExcerpt = 100 // characters

// excerpt is the beginning of a text on one line, without what would steer a
// terminal.
func excerpt(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || unicode.IsSpace(r) {
			return r
		}
		return -1
	}, text)
	words := []rune(strings.Join(strings.Fields(text), " "))
	if len(words) > maxExcerpt {
		return string(words[:maxExcerpt]) + "…"
	}
	return string(words)
}

// moment parses a time: RFC 3339, a day and a clock time with or without a
// zone, or a duration from now. A duration without a sign is in the future, or in the
// past if past is set.
func moment(s string, past bool, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	if t, is, err := clockTime(s, now); is {
		return t, err
	}
	d, err := duration(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a time like 2026-12-01T09:00:00Z, '2026-12-01 09:00 Europe/Berlin' or 'tomorrow 09:00' nor a duration like 10m or 1d2h", s)
	}
	if past && s[0] != '+' && s[0] != '-' {
		d = -d
	}
	return now.Add(d), nil
}

// duration is time.ParseDuration that also accepts days of 24 hours, before the rest.
func duration(s string) (time.Duration, error) {
	sign, rest := time.Duration(1), s
	if strings.HasPrefix(s, "+") || strings.HasPrefix(s, "-") {
		rest = s[1:]
	}
	if rest != s && s[0] == '-' {
		sign = -1
	}
	days, hours, found := strings.Cut(rest, "d")
	n, err := strconv.ParseUint(days, 10, 16)
	if !found || err != nil {
		return time.ParseDuration(s)
	}
	whole := time.Duration(n) * 24 * time.Hour
	if hours == "" {
		return sign * whole, nil
	}
	if hours[0] == '+' || hours[0] == '-' {
		return 0, fmt.Errorf("%q has two signs", s)
	}
	d, err := time.ParseDuration(hours)
	return sign * (whole + d), err
}

// clockTime parses a day (today, tomorrow or a date), a clock time, and optionally the
// name of a zone; the default is the local zone. It is false for anything else.
func clockTime(s string, now time.Time) (t time.Time, is bool, err error) {
	words := strings.Fields(s)
	if len(words) == 0 {
		return t, false, nil
	}
	if day, clock, found := strings.Cut(words[0], "T"); found {
		words = append([]string{day, clock}, words[1:]...)
	}
	zone := now.Location()
	switch len(words) {
	case 2:
	case 3:
		if zone, err = time.LoadLocation(words[2]); err != nil {
			return t, true, fmt.Errorf("%q has no time zone like Europe/Berlin: %w", s, err)
		}
	default:
		return t, false, nil
	}
	day, clock := words[0], words[1]
	today := now.In(zone)
	switch day {
	case "today":
		day = today.Format(time.DateOnly)
	case "tomorrow":
		day = today.AddDate(0, 0, 1).Format(time.DateOnly)
	}
	for _, layout := range []string{"2006-01-02 15:04", time.DateTime} {
		t, err := time.ParseInLocation(layout, day+" "+clock, zone)
		if err != nil {
			continue
		}
		// In UTC every clock time exists.
		if wall, err := time.Parse(layout, day+" "+clock); err != nil || t.Format(time.TimeOnly) != wall.Format(time.TimeOnly) {
			return t, true, fmt.Errorf("%q does not exist in %s, whose clocks go forward then", s, zoneName(zone))
		}
		return t, true, nil
	}
	return t, false, nil
}

func zoneName(zone *time.Location) string {
	if zone == time.Local {
		return "this machine's zone"
	}
	return zone.String()
}

// reasonCode checks a --code, which may be empty.
func reasonCode(s string) (jetpost.Code, error) {
	for _, code := range jetpost.Codes() {
		if s == "" || s == string(code) {
			return jetpost.Code(s), nil
		}
	}
	return "", fmt.Errorf("--code: %q is not a reason code; use one of %s", s, joined(jetpost.Codes()))
}

func joined[T ~string](values []T) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = string(v)
	}
	return strings.Join(words, ", ")
}

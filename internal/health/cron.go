package health

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxCronYears bounds the search for the next time.
const maxCronYears = 5

// cronFields are the least and the largest value of each field, seconds first, and the
// names of those that have some.
var cronFields = [...]struct {
	least, most int
	names       []string // of the values from least on
}{
	{0, 59, nil}, {0, 59, nil}, {0, 23, nil}, {1, 31, nil},
	{1, 12, []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
	{0, 6, []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
}

// NextRound returns when a schedule in NATS' form is next due after a time; false if it
// cannot be read.
func NextRound(cron, zone string, after time.Time) (time.Time, bool) {
	if every, is := strings.CutPrefix(cron, "@every "); is {
		d, err := time.ParseDuration(every)
		return after.Add(d), err == nil && d >= time.Second
	}
	for name, same := range map[string]string{
		"@yearly": "0 0 0 1 1 *", "@annually": "0 0 0 1 1 *", "@monthly": "0 0 0 1 * *", "@weekly": "0 0 0 * * 0",
		"@daily": "0 0 0 * * *", "@midnight": "0 0 0 * * *", "@hourly": "0 0 * * * *",
	} {
		if cron == name {
			cron = same
		}
	}
	location, err := time.LoadLocation(zone)
	texts := strings.Fields(cron)
	if err != nil || len(texts) != len(cronFields) {
		return time.Time{}, false
	}
	var sets [len(cronFields)][]bool
	for i, text := range texts {
		if sets[i] = cronSet(text, i); sets[i] == nil {
			return time.Time{}, false
		}
	}
	anyDay := strings.HasPrefix(texts[3], "*") || strings.HasPrefix(texts[3], "?") || strings.HasPrefix(texts[5], "*") || strings.HasPrefix(texts[5], "?")
	t := after.In(location).Truncate(time.Second).Add(time.Second)
	for last := t.Year() + maxCronYears; t.Year() <= last; {
		day, weekday := sets[3][t.Day()], sets[5][t.Weekday()]
		switch {
		case !sets[4][t.Month()], anyDay && !(day && weekday), !anyDay && !day && !weekday:
			t = time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, location)
		case !sets[2][t.Hour()]:
			t = t.Truncate(time.Minute).Add(time.Duration(60-t.Minute()) * time.Minute)
		case !sets[1][t.Minute()]:
			t = t.Truncate(time.Minute).Add(time.Minute)
		case !sets[0][t.Second()]:
			t = t.Add(time.Second)
		default:
			return t, true
		}
	}
	return time.Time{}, false
}

// cronSet returns which values a field has; nil if it cannot be read.
func cronSet(text string, i int) []bool {
	field := cronFields[i]
	set := make([]bool, field.most+1)
	for _, part := range strings.Split(text, ",") {
		span, stepText, stepped := strings.Cut(part, "/")
		from, to, isRange := strings.Cut(span, "-")
		first, last, step := field.least, field.most, 1
		if from != "*" && from != "?" {
			if first = cronValue(from, i); !isRange && !stepped {
				last = first
			}
		}
		if isRange {
			last = cronValue(to, i)
		}
		if stepped {
			step = number(stepText)
		}
		if first < field.least || last > field.most || last < first || step < 1 {
			return nil
		}
		for v := first; v <= last; v += step {
			set[v] = true
		}
	}
	return set
}

func cronValue(text string, i int) int {
	if at := slices.Index(cronFields[i].names, strings.ToLower(text)); at >= 0 {
		return at + cronFields[i].least
	}
	return number(text)
}

// number is -1 if the text is no number.
func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return -1
	}
	return n
}

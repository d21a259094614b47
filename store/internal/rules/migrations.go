package rules

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strconv"
)

// declaration is the line by which a migration says what it does to older workers.
var declaration = regexp.MustCompile(`(?m)^-- Older workers (go on|stop)\.$`)

// OldestSchema returns for which schema the oldest worker must be built that goes on once
// these migrations are made: the newest one that older workers do not survive. A migration
// that does not say that they do counts as one.
func OldestSchema(migrations fs.FS) (oldest int64, err error) {
	names, err := fs.Glob(migrations, "*.sql")
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		text, err := fs.ReadFile(migrations, name)
		if err != nil {
			return 0, err
		}
		version, err := strconv.ParseInt(path.Base(name)[:5], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("migration %s: its name begins with no number", name)
		}
		if said := declaration.FindSubmatch(text); said == nil || string(said[1]) == "stop" {
			oldest = max(oldest, version)
		}
	}
	return oldest, nil
}

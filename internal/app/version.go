package app

import (
	"cmp"
	"runtime/debug"
	"strings"
)

// Set by the linker, with -X, where the go command cannot see the repository: in a
// release and in an image.
var (
	version string // v1.2.3
	commit  string // its hash
	date    string // of the commit, RFC 3339
)

// Build says which source this program was built from.
type Build struct {
	Version string `json:"version"`          // a release, a pseudo-version of a commit, or "devel"
	Commit  string `json:"commit,omitempty"` // hash
	Date    string `json:"date,omitempty"`   // of the commit, RFC 3339
	Go      string `json:"go"`               // the Go that built it
}

// ThisBuild is what the linker was told or, beside that, what the go command has noted.
func ThisBuild() Build {
	b := Build{Version: version, Commit: commit, Date: date}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		b.Version = cmp.Or(b.Version, "unknown")
		return b
	}
	b.Go = info.GoVersion
	if b.Version == "" {
		b.Version = strings.Trim(info.Main.Version, "()")
	}
	b.Version = cmp.Or(b.Version, "devel")
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = cmp.Or(b.Commit, s.Value)
		case "vcs.time":
			b.Date = cmp.Or(b.Date, s.Value)
		}
	}
	return b
}

// String is the version with, where they are known, commit and date.
func (b Build) String() string {
	facts := []string{b.Version}
	if b.Commit != "" {
		facts = append(facts, "commit "+b.Commit[:min(12, len(b.Commit))])
	}
	if b.Date != "" {
		facts = append(facts, b.Date)
	}
	return strings.Join(facts, ", ")
}

package e2e

import (
	"os"
	"testing"

	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
)

// Exit codes, as the command line's contract has them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitWaiting     = 5
	exitInterrupted = 130
)

func TestMain(m *testing.M) {
	os.Exit(harness.Main(m.Run, map[string]func(){"open": testkit.Browser, "xdg-open": testkit.Browser}))
}

// site is an installation, with what these tests want of it.
type site struct{ *harness.Site }

func newSite(t *testing.T, c harness.SiteConfig) *site {
	t.Helper()
	return &site{harness.NewSite(t, c)}
}

// Command chaos does the runs of scripts/chaos, which says what they are.
package main

import (
	"os"

	"github.com/jetpost/jetpost/internal/chaos"
	"github.com/jetpost/jetpost/internal/e2e/harness"
)

func main() {
	os.Exit(harness.Main(func() int { return chaos.Main(os.Args[1:], os.Stdout) }, nil))
}

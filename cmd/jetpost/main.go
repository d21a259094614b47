// Command jetpost keeps the tokens of many X accounts alive and publishes posts and
// threads for them from NATS JetStream. What it does is in internal/cli.
package main

import (
	"os"

	"github.com/jetpost/jetpost/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

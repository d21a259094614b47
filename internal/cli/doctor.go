package cli

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/jetpost/jetpost/internal/app"
)

// doctorCmd is 'jetpost doctor'.
type doctorCmd struct {
	workFlags    `embed:""`
	Callback     string `default:"127.0.0.1:8484" placeholder:"ADDR" help:"Listening address of 'accounts connect' (${default})."`
	connectFlags `embed:""`
}

// Run checks everything that a worker needs, and prints a line for each check. Exit code
// 1: a check failed.
func (c *doctorCmd) Run(e *env) error {
	cfg, err := c.config(e)
	if err != nil {
		return err
	}
	found := (&app.Doctor{Config: cfg, Callback: c.Callback, Log: e.log}).Examine(e.ctx)
	bad := 0
	var rows []string
	for _, f := range found {
		if f.Verdict == app.CheckWrong {
			bad++
		}
		rows = append(rows, f.Verdict+"\t"+f.Check+"\t"+f.Detail)
		if f.Do != "" {
			rows = append(rows, "\t\tdo: "+f.Do)
		}
	}
	if e.asJSON() {
		err = list(e, found, "", nil)
	} else {
		err = e.show(nil, align(rows))
	}
	if err == nil && bad > 0 {
		err = fmt.Errorf("%s of %d failed", counted(bad, "check", "checks"), len(found))
	}
	return err
}

// config is the configuration of a 'jetpost up' on this machine, or of a worker with these
// flags and this environment.
func (c *doctorCmd) config(e *env) (app.Config, error) {
	cfg, err := e.config()
	if err != nil {
		return cfg, err
	}
	data := e.data(false)
	if running, err := e.natsConfig(); err == nil && cfg.NATS.URL == "" {
		cfg = running
		if path, is := strings.CutPrefix(cfg.DatabaseURL.Reveal(), "sqlite:"); is {
			data = filepath.Dir(path) // its lifeboat is checked, too
		}
	}
	c.apply(&cfg, data)
	return cfg, nil
}

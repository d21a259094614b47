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
	Callback     string `default:"127.0.0.1:8484" placeholder:"ADDR" help:"Where 'accounts connect' waits for X's answer (${default})."`
	connectFlags `embed:""`
}

// Run says of each thing that a worker needs whether it is there, a line each. Exit code
// 1: something is not.
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

// config is that of a 'jetpost up' that runs here, or of a worker that would be started
// with these flags and this environment.
func (c *doctorCmd) config(e *env) (app.Config, error) {
	cfg, err := e.config()
	if err != nil {
		return cfg, err
	}
	data := e.data(false)
	if running, err := e.natsConfig(); err == nil && cfg.NATS.URL == "" {
		cfg = running
		if path, is := strings.CutPrefix(cfg.DatabaseURL.Reveal(), "sqlite:"); is {
			data = filepath.Dir(path) // whose lifeboat is meant, too
		}
	}
	c.apply(&cfg, data)
	return cfg, nil
}

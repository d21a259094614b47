package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// simCmd is 'jetpost sim'.
type simCmd struct {
	Listen       string `default:"127.0.0.1:8090" placeholder:"ADDR" help:"Listening address (${default})."`
	Strict       bool   `help:"Refuse calls that are not in X's specification, even if X is believed to accept them."`
	Data         string `env:"JETPOST_SIM_DATA" type:"path" placeholder:"DIR" help:"Store all data in this directory, so that the next start continues from it. Default: nothing is stored."`
	scenarioFlag `embed:""`
}

// scenarioFlag is a flag of the commands that run a simulator.
type scenarioFlag struct {
	Scenario string `type:"path" placeholder:"FILE" help:"Play the scenario in this file on the simulated X."`
}

// read reads the scenario. Without the flag the scenario has no steps.
func (f scenarioFlag) read() (s xsim.Scenario, err error) {
	if f.Scenario == "" {
		return s, nil
	}
	data, err := os.ReadFile(f.Scenario)
	if err != nil {
		return s, &app.HintError{Err: fmt.Errorf("read scenario: %w", err), Help: "name a file with --scenario"}
	}
	if s, err = xsim.ReadScenario(data); err != nil {
		return s, &app.HintError{Err: fmt.Errorf("read scenario %s: %w", f.Scenario, err), Help: "see the section Scenarios of docs/SIMULATOR.md"}
	}
	return s, nil
}

// Run serves the simulator until it is told to stop.
func (c *simCmd) Run(e *env) (err error) {
	scenario, err := c.read()
	if err != nil {
		return err
	}
	sim := &xsim.Server{Logger: e.log, Strict: c.Strict}
	if c.Data != "" {
		dir, err := openSim(c.Data, sim)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, sim.Close(), dir.Close()) }()
	}
	listener, err := app.Listen(e.ctx, c.Listen, "--listen")
	if err != nil {
		return err
	}
	url := "http://" + listener.Addr().String()
	fmt.Fprintf(e.stdout, "simulated X on %s; jetpost uses it with X_API_URL=%s X_CLIENT_ID=simulator\n", url, url)
	fmt.Fprintf(e.stdout, "create an account: curl -d '{\"handle\":\"acme\"}' %s/_sim/accounts\n", url)
	fmt.Fprintln(e.stdout, "then connect it: jetpost accounts connect acme")
	fmt.Fprintf(e.stdout, "its posts and accounts: %s/_sim/\n", url)
	if err := sim.Play(scenario); err != nil {
		return err
	}
	return app.Serve(e.ctx, listener, sim)
}

// openSim loads the simulator's data from the directory, and stores it there from then on.
func openSim(path string, sim *xsim.Server) (*app.DataDir, error) {
	dir, err := app.OpenDataDir(path)
	if err != nil {
		return nil, err
	}
	if err = dir.Settle(true); err == nil {
		err = dir.KeepSim(sim)
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

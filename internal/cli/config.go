package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// settingsFile is the file of --config. Flags that are for one run alone, such as --yes, are
// not taken from it.
type settingsFile struct {
	kong.Resolver // kong's own, which finds a flag's value in JSON
	keys          []string
}

// readSettings reads such a file.
func readSettings(r io.Reader) (kong.Resolver, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var values map[string]any
	if err := json.Unmarshal(text, &values); err != nil {
		return nil, fmt.Errorf("--config: is no JSON object: %w", err)
	}
	byFlag, err := kong.JSON(bytes.NewReader(text))
	return &settingsFile{Resolver: byFlag, keys: slices.Sorted(maps.Keys(values))}, err
}

// fromEnvironment is the variable that sets a flag, "" if none does.
func fromEnvironment(flag *kong.Flag) string {
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set {
			return name
		}
	}
	return ""
}

// isSetting tells a flag that the environment, and so a file, may set.
func isSetting(flag *kong.Flag) bool { return len(flag.Envs) > 0 && flag.Name != "config" }

// Resolve implements kong.Resolver: the environment goes before the file.
func (f *settingsFile) Resolve(ctx *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	if !isSetting(flag) || fromEnvironment(flag) != "" {
		return nil, nil
	}
	return f.Resolver.Resolve(ctx, parent, flag)
}

// Validate implements kong.Resolver: a key that is no flag is a mistake.
func (f *settingsFile) Validate(program *kong.Application) error {
	known := map[string]bool{}
	for _, s := range settingsOf(program) {
		known[s.flag.Name] = true
	}
	var wrong []error
	for _, key := range f.keys {
		if name := strings.ReplaceAll(key, "_", "-"); !known[name] {
			wrong = append(wrong, fmt.Errorf("--config: %q is no flag that a file may set; see: jetpost config show", key))
		}
	}
	return errors.Join(wrong...)
}

// setting is a flag that the environment or a file may set, and the commands that have it.
type setting struct {
	flag     *kong.Flag
	commands []string
}

// settingsOf lists the flags of all commands, each once, by name.
func settingsOf(program *kong.Application) []*setting {
	found := map[string]*setting{}
	_ = kong.Visit(program, func(node kong.Visitable, next kong.Next) error { // it fails only if this does
		var is *kong.Node
		switch n := node.(type) {
		case *kong.Application:
			is = n.Node
		case *kong.Node:
			is = n
		}
		if is != nil {
			for _, flag := range is.Flags {
				if !isSetting(flag) {
					continue
				}
				key := flag.Name + " " + flag.Envs[0] + " " + flag.Default
				if found[key] == nil {
					found[key] = &setting{flag: flag}
				}
				if is.Type == kong.CommandNode {
					found[key].commands = append(found[key].commands, strings.TrimPrefix(is.FullPath(), program.Name+" "))
				}
			}
		}
		return next(nil)
	})
	all := slices.Collect(maps.Values(found))
	slices.SortFunc(all, func(a, b *setting) int {
		return strings.Compare(a.flag.Name+" "+strings.Join(a.commands, " "), b.flag.Name+" "+strings.Join(b.commands, " "))
	})
	return all
}

// configCmd is 'jetpost config'.
type configCmd struct {
	Show configShowCmd `cmd:"" help:"Print every setting with its value and its source. Secrets are redacted."`
}

// configShowCmd is 'jetpost config show'.
type configShowCmd struct {
	Command []string `arg:"" optional:"" help:"Only the settings of this command: worker, accounts list."`
}

// shownSetting is the result of 'jetpost config show'.
type shownSetting struct {
	Name     string `json:"name"` // of the flag, or of a secret's variable
	Variable string `json:"variable"`
	Value    string `json:"value"`
	// Source is default, "environment NAME", "file PATH", or unset for a secret.
	Source   string   `json:"source"`
	Commands []string `json:"commands,omitempty"` // that have the flag; none: all
}

const redactedValue = "REDACTED"

// Run prints the settings.
func (c *configShowCmd) Run(e *env, ctx *kong.Context) error {
	var file *settingsFile
	path := string(e.cli.ConfigFile)
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return &exitError{code: exitUsage, err: fmt.Errorf("--config: %w", err)}
		}
		defer func() { _ = f.Close() }() // only read from
		read, err := readSettings(f)
		if err != nil {
			return &exitError{code: exitUsage, err: err}
		}
		file, _ = read.(*settingsFile)
	}
	command := strings.Join(c.Command, " ")
	var shown []shownSetting
	for _, s := range settingsOf(ctx.Model) {
		if command != "" && len(s.commands) > 0 && !slices.Contains(s.commands, command) {
			continue
		}
		one := shownSetting{Name: s.flag.Name, Variable: s.flag.Envs[0], Value: s.flag.Default, Source: "default", Commands: s.commands}
		variable := fromEnvironment(s.flag)
		if variable != "" {
			one.Value, one.Source = os.Getenv(variable), "environment "+variable
		} else if file != nil {
			value, err := file.Resolver.Resolve(ctx, nil, s.flag)
			if err != nil {
				return err
			}
			if value != nil {
				one.Value, one.Source = valueText(value), "file "+path
			}
		}
		if one.Value = withoutLogins(one.Value); s.flag.Name == "notify" && one.Value != "" {
			one.Value = redactedValue // most webhooks let in whoever knows their address
		}
		shown = append(shown, one)
	}
	if command != "" && !slices.ContainsFunc(shown, func(s shownSetting) bool { return slices.Contains(s.Commands, command) }) {
		return &exitError{code: exitUsage, err: fmt.Errorf("there is no command %q with settings; see: jetpost --help", command)}
	}
	for _, name := range SecretNames() {
		shown = append(shown, secretSetting(name))
	}
	return list(e, shown, "SETTING\tVALUE\tSOURCE\tCOMMANDS", func(s shownSetting) string {
		commands := strings.Join(s.Commands, ", ")
		if len(s.Commands) > 2 {
			commands = fmt.Sprintf("%d commands", len(s.Commands))
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s", s.Name, s.Value, s.Source, commands)
	})
}

// valueText is a value of the file as the command line would have it.
func valueText(value any) string {
	switch v := value.(type) {
	case []any:
		words := make([]string, len(v))
		for i, one := range v {
			words[i] = fmt.Sprint(one)
		}
		return strings.Join(words, ",")
	default:
		return fmt.Sprint(v)
	}
}

// withoutLogins hides a user with a password, or a token, in addresses.
func withoutLogins(value string) string {
	parts := strings.Split(value, ",")
	for i, part := range parts {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil || u.Host == "" {
			continue
		}
		if u.User != nil {
			u.User = url.User(redactedValue)
		}
		parts[i] = u.String()
	}
	return strings.Join(parts, ",")
}

// secretSetting says whether a secret is set, and where.
func secretSetting(name string) shownSetting {
	one := shownSetting{Name: name, Variable: name, Source: "unset"}
	if os.Getenv(name) != "" {
		one.Value, one.Source = redactedValue, "environment "+name
	}
	if path := os.Getenv(name + "_FILE"); path != "" {
		one.Value, one.Source = redactedValue, "file "+path+" of "+name+"_FILE"
	}
	return one
}

//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"go/version"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.yaml.in/yaml/v3"

	"github.com/jetpost/jetpost/internal/cli"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
)

const (
	composePath    = "../../docker-compose.yml"
	dockerfilePath = "../../Dockerfile"
)

// composeFile is docker-compose.yml. Its types have a field for each key that
// the file may use, so that a misspelt one is an error.
type composeFile struct {
	Name         string
	XEnvironment any `yaml:"x-environment"`
	XLogging     any `yaml:"x-logging"`
	XJetpost     any `yaml:"x-jetpost"`
	Services     map[string]composeService
	Volumes      map[string]any
	Secrets      map[string]struct{ File string }
}

type composeService struct {
	Image           string
	Build           string
	Profiles        []string
	ContainerName   string `yaml:"container_name"`
	Entrypoint      []string
	Command         []string
	Restart         string
	Environment     map[string]string
	Ports           []string
	Volumes         []string
	DependsOn       map[string]composeDependency `yaml:"depends_on"`
	StopGracePeriod time.Duration                `yaml:"stop_grace_period"`
	HealthCheck     composeHealth                `yaml:"healthcheck"`
	ReadOnly        bool                         `yaml:"read_only"`
	Secrets         []string
	Logging         composeLogging
	MemLimit        string   `yaml:"mem_limit"`
	CPUs            float64  `yaml:"cpus"`
	PIDsLimit       int      `yaml:"pids_limit"`
	CapDrop         []string `yaml:"cap_drop"`
	SecurityOpt     []string `yaml:"security_opt"`
}

type composeLogging struct {
	Driver  string
	Options map[string]string
}

type composeDependency struct{ Condition string }

type composeHealth struct {
	Test        []string
	Interval    time.Duration
	Timeout     time.Duration
	StartPeriod time.Duration `yaml:"start_period"`
	Retries     int
}

// parseCompose reads the file as Compose does: anchors and merge keys by YAML,
// then variables within values.
func parseCompose(text []byte, variables map[string]string) (file composeFile, err error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return file, err
	}
	if err := interpolateNode(&document, variables); err != nil {
		return file, err
	}
	resolved, err := yaml.Marshal(&document)
	if err != nil {
		return file, err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(resolved))
	decoder.KnownFields(true)
	return file, decoder.Decode(&file)
}

// interpolateNode leaves aliases alone: what they name is met at its anchor.
func interpolateNode(node *yaml.Node, variables map[string]string) (err error) {
	if node.Kind == yaml.ScalarNode {
		if node.Value, err = interpolate(node.Value, variables); err != nil {
			return fmt.Errorf("line %d: %w", node.Line, err)
		}
	}
	for _, child := range node.Content {
		if err := interpolateNode(child, variables); err != nil {
			return err
		}
	}
	return nil
}

var composeVariable = regexp.MustCompile(`(?s)^([A-Z_]+)(?:(:-|:\?)(.*))?$`)

// interpolate replaces ${NAME}, ${NAME:-default}, ${NAME:?message}, and $$ by $. Any
// other use of $ is an error, a variable within a default too: podman-compose does not read it.
func interpolate(text string, variables map[string]string) (string, error) {
	before, rest, found := strings.Cut(text, "$")
	if !found {
		return text, nil
	}
	if after, escaped := strings.CutPrefix(rest, "$"); escaped {
		after, err := interpolate(after, variables)
		return before + "$" + after, err
	}
	end := strings.Index(rest, "}")
	if end < 1 || rest[0] != '{' || strings.Contains(rest[:end], "$") {
		return "", fmt.Errorf("unknown form of variable: $%s", rest)
	}
	parts := composeVariable.FindStringSubmatch(rest[1:end])
	if parts == nil {
		return "", fmt.Errorf("unknown form of variable: $%s", rest)
	}
	name, operator, word := parts[1], parts[2], parts[3]
	value := variables[name]
	if value == "" && operator == ":?" {
		return "", fmt.Errorf("required variable %s is missing a value: %s", name, word)
	}
	after, err := interpolate(rest[end+1:], variables)
	return before + cmp.Or(value, word) + after, err
}

func readCompose(t *testing.T, variables map[string]string) composeFile {
	t.Helper()
	file, err := parseCompose(readText(t, composePath), variables)
	testkit.Must(t, err)
	return file
}

func readText(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	testkit.Must(t, err)
	return text
}

var composeSimLine = regexp.MustCompile(`(?m)^export COMPOSE_PROFILES=sim (.+)$`)

// simVariables are those that the README says to run the simulator with.
func simVariables(t *testing.T) map[string]string {
	t.Helper()
	line := composeSimLine.FindSubmatch(readText(t, "../../README.md"))
	if line == nil {
		t.Fatal("the README does not say how to run the simulator")
	}
	variables := map[string]string{}
	for _, assignment := range strings.Fields(string(line[1])) {
		name, value, _ := strings.Cut(assignment, "=")
		variables[name] = value
	}
	return variables
}

// TestComposeSecrets: each secret is a file, which the README makes, and no value of it
// stands in the environment.
func TestComposeSecrets(t *testing.T) {
	t.Parallel()
	file, readme := readCompose(t, nil), string(readText(t, "../../README.md"))
	for name, secret := range file.Secrets {
		wantEqual(t, name, secret.File, "./secrets/"+name)
		if !strings.Contains(readme, "> secrets/"+name) && !regexp.MustCompile(`for name in [^;]*\b`+name+`[ ;].*> secrets/\$name; done`).MatchString(readme) {
			t.Errorf("the README does not make secrets/%s", name)
		}
	}
	for name, service := range file.Services {
		for variable, value := range service.Environment {
			if secret, found := strings.CutPrefix(value, "/run/secrets/"); found && !slices.Contains(service.Secrets, secret) {
				t.Errorf("%s: %s names %s, which it is not given", name, variable, value)
			}
			if slices.Contains(cli.SecretNames(), variable) && variable != "DATABASE_URL" {
				t.Errorf("%s: %s stands in the environment", name, variable)
			}
		}
	}
	for _, name := range []string{"setup", "worker"} {
		for _, variable := range []string{"HUB_ENCRYPTION_KEY_FILE", "DATABASE_PASSWORD_FILE", "X_CLIENT_SECRET_FILE"} {
			if file.Services[name].Environment[variable] == "" {
				t.Errorf("%s has no %s", name, variable)
			}
		}
	}
	for variable := range file.Services["web"].Environment { // what holds the accounts stays with workers
		if strings.HasPrefix(variable, "DATABASE") || strings.Contains(variable, "ENCRYPTION_KEY") || strings.HasPrefix(variable, "X_") {
			t.Errorf("web has %s", variable)
		}
	}
}

// TestComposeIsBounded: no service takes all of a machine, and each image is one alone.
func TestComposeIsBounded(t *testing.T) {
	t.Parallel()
	pinned := regexp.MustCompile(`:\d+\.\d+`)
	for name, service := range readCompose(t, nil).Services {
		if service.MemLimit == "" || service.CPUs == 0 || service.PIDsLimit == 0 || service.Logging.Options["max-size"] == "" {
			t.Errorf("%s has no limit of memory, processors, processes or logs", name)
		}
		if service.Build == "" && !pinned.MatchString(service.Image) {
			t.Errorf("%s: image %s is not pinned", name, service.Image)
		}
	}
}

func TestComposeDatabaseAgrees(t *testing.T) {
	t.Parallel()
	file := readCompose(t, nil)
	database := file.Services["postgres"]
	for _, name := range []string{"setup", "worker"} {
		u, err := url.Parse(file.Services[name].Environment["DATABASE_URL"])
		testkit.Must(t, err)
		wantEqual(t, name+": host", u.Host, "postgres:5432")
		wantEqual(t, name+": user", u.User.Username(), database.Environment["POSTGRES_USER"])
		wantEqual(t, name+": password", file.Services[name].Environment["DATABASE_PASSWORD_FILE"], database.Environment["POSTGRES_PASSWORD_FILE"])
		wantEqual(t, name+": database", u.Path, "/"+database.Environment["POSTGRES_DB"])
	}
	wantEqual(t, "health check", strings.Join(database.HealthCheck.Test, " "),
		"CMD pg_isready -h 127.0.0.1 -U "+database.Environment["POSTGRES_USER"]+" -d "+database.Environment["POSTGRES_DB"])
	// 5432 is the server's own choice, unless one of these makes another.
	wantEqual(t, "PGPORT", database.Environment["PGPORT"], "")
	wantEqual(t, "command", strings.Join(database.Command, " "), "")
}

func TestComposeOrderAndScale(t *testing.T) {
	t.Parallel()
	file := readCompose(t, nil)
	if want := map[string]composeDependency{"nats": {"service_healthy"}, "postgres": {"service_healthy"}}; !maps.Equal(file.Services["setup"].DependsOn, want) {
		t.Errorf("setup waits for %v, want %v", file.Services["setup"].DependsOn, want)
	}
	for _, name := range []string{"worker", "web"} {
		if want := map[string]composeDependency{"setup": {"service_completed_successfully"}}; !maps.Equal(file.Services[name].DependsOn, want) {
			t.Errorf("%s waits for %v, want %v", name, file.Services[name].DependsOn, want)
		}
	}
	// A service that starts again and again never completes.
	wantEqual(t, "restart of setup", file.Services["setup"].Restart, "")
	if ports := file.Services["worker"].Ports; len(ports) > 0 {
		t.Errorf("worker publishes %v: a second one could not", ports)
	}
	for name, service := range file.Services {
		wantEqual(t, name+": container_name, of which there can be one alone", service.ContainerName, "")
		for dependency, d := range service.DependsOn {
			if on, found := file.Services[dependency]; !found || (d.Condition == "service_healthy" && len(on.HealthCheck.Test) == 0) {
				t.Errorf("%s waits for %s to be %s, which it never is", name, dependency, d.Condition)
			}
		}
		for _, mount := range service.Volumes {
			volume, _, _ := strings.Cut(mount, ":")
			if _, found := file.Volumes[volume]; !found {
				t.Errorf("%s mounts %s, which is not declared", name, volume)
			}
		}
	}
}

func TestComposePortsAgree(t *testing.T) {
	t.Parallel()
	file := readCompose(t, simVariables(t))
	ports := map[string]string{}
	for name, flag := range map[string]string{"worker": "--health-listen", "web": "--listen", "sim": "--listen"} {
		host, port, err := net.SplitHostPort(flagOf(t, file.Services[name], flag))
		testkit.Must(t, err)
		wantEqual(t, name+": host, which other containers must reach", host, "0.0.0.0")
		wantEqual(t, name+": health check", healthURL(t, file.Services[name]).Host, "127.0.0.1:"+port)
		if ports[name] = port; name != "worker" {
			wantEqual(t, name+": published", strings.Join(file.Services[name].Ports, " "), "127.0.0.1:"+port+":"+port)
		}
	}
	wantEqual(t, "X_API_URL of the comment", file.Services["worker"].Environment["X_API_URL"], "http://sim:"+ports["sim"])
	wantEqual(t, "public address of the pages", file.Services["web"].Environment["JETPOST_PUBLIC_URL"], "http://127.0.0.1:"+ports["web"])
	wantEqual(t, "sim: profile", strings.Join(file.Services["sim"].Profiles, " "), "sim")
	if job := "dns_sd_configs: [{names: [worker], type: A, port: " + ports["worker"] + "}]"; !strings.Contains(string(readText(t, deployed+"prometheus/prometheus.yml")), job) {
		t.Errorf("prometheus.yml does not say how to find the workers: %s", job)
	}
}

// TestComposeNATSAgrees: the server listens where its clients look, with the version that
// is tested here, and each of its users has a password that the server and its holder
// are given.
func TestComposeNATSAgrees(t *testing.T) {
	t.Parallel()
	file, readme := readCompose(t, nil), string(readText(t, "../../README.md"))
	service := file.Services["nats"]
	wantEqual(t, "image", service.Image, "nats:"+server.VERSION+"-alpine")
	line := regexp.MustCompile(`jetpost (nats config .*\S) +> secrets/nats\.conf`).FindStringSubmatch(readme)
	if line == nil {
		t.Fatal("the README does not make secrets/nats.conf")
	}
	code, config, stderr := harness.RunCommand(t, harness.Environment(t, nil), "jetpost", strings.Fields(line[1])...)
	if code != exitOK {
		t.Fatalf("jetpost %s: exit code %d\n%s", line[1], code, stderr)
	}
	path := filepath.Join(t.TempDir(), "nats.conf")
	for _, user := range []string{"worker", "operator", "setup", "producer", "web"} {
		name := "NATS_" + strings.ToUpper(user) + "_PASSWORD"
		if !strings.Contains(strings.Join(service.Command, ""), name+`="$(password `+user+`)"`) {
			t.Errorf("nats is not given %s", name)
		}
		config = strings.ReplaceAll(config, "$"+name, `"0`+user+`"`)
	}
	testkit.Must(t, os.WriteFile(path, []byte(config), 0o600))
	options, err := server.ProcessConfigFile(path)
	testkit.Must(t, err)
	port := fmt.Sprint(options.Port)
	wantEqual(t, "published", strings.Join(service.Ports, " "), "127.0.0.1:"+port+":"+port)
	wantEqual(t, "host, which other containers must reach", options.Host, "0.0.0.0")
	wantEqual(t, "volume", strings.Join(service.Volumes, " "), "nats:"+options.StoreDir)
	wantEqual(t, "health check", healthURL(t, service).Host, fmt.Sprintf("127.0.0.1:%d", options.HTTPPort))
	for name, user := range map[string]string{"setup": "setup", "worker": "worker", "web": "web"} {
		env := file.Services[name].Environment
		wantEqual(t, name+": NATS_URL", env["NATS_URL"], "nats://nats:"+port)
		wantEqual(t, name+": NATS_USER", env["NATS_USER"], user)
		wantEqual(t, name+": password", env["NATS_PASSWORD_FILE"], "/run/secrets/nats-"+user)
	}
}

// healthURL is what a health check asks, which its last word names.
func healthURL(t *testing.T, service composeService) *url.URL {
	t.Helper()
	test := service.HealthCheck.Test
	if len(test) < 3 || test[0] != "CMD" {
		t.Fatalf("health check %v does not run a program", test)
	}
	u, err := url.Parse(test[len(test)-1])
	testkit.Must(t, err)
	return u
}

// flagOf is the word after a flag.
func flagOf(t *testing.T, service composeService, name string) string {
	t.Helper()
	i := slices.Index(service.Command, name)
	if i < 0 || i+1 == len(service.Command) {
		t.Fatalf("command %v has no %s", service.Command, name)
	}
	return service.Command[i+1]
}

func wantEqual(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// dockerStep is one instruction of the Dockerfile, its lines joined.
type dockerStep struct{ verb, words string }

func readDockerfile(t *testing.T) []dockerStep {
	t.Helper()
	text := strings.ReplaceAll(string(readText(t, dockerfilePath)), "\\\n", " ")
	var steps []dockerStep
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		verb, words, _ := strings.Cut(line, " ")
		steps = append(steps, dockerStep{verb, strings.TrimSpace(words)})
	}
	return steps
}

// theStep is the only instruction of a verb whose words match.
func theStep(t *testing.T, verb, pattern string) []string {
	t.Helper()
	matcher := regexp.MustCompile(pattern)
	var found [][]string
	for _, step := range readDockerfile(t) {
		if words := matcher.FindStringSubmatch(step.words); step.verb == verb && words != nil {
			found = append(found, words)
		}
	}
	if len(found) != 1 {
		t.Fatalf("the Dockerfile has %d steps %s %s, want one", len(found), verb, pattern)
	}
	return found[0]
}

// The last stage has no shell, so that an ENTRYPOINT or health check of any
// other form could not run.
func TestDockerfileFitsCompose(t *testing.T) {
	t.Parallel()
	entrypoint := theStep(t, "ENTRYPOINT", `^\["([^"]+)"\]$`)[1]
	for name, service := range readCompose(t, nil).Services {
		if test := service.HealthCheck.Test; service.Build != "" && len(test) > 0 {
			wantEqual(t, name+": health check", strings.Join(test[:2], " "), "CMD "+entrypoint)
		}
	}
	user := theStep(t, "USER", `^([1-9][0-9]*:[1-9][0-9]*)$`)[1] // a number, and not root's
	wantEqual(t, "owner of what is written", theStep(t, "RUN", `chown -R (\S+) /out/data$`)[1], user)
	theStep(t, "ENV", `^XDG_DATA_HOME=/data TMPDIR=/data$`)
	wantEqual(t, "place of the volume", theStep(t, "WORKDIR", `^/data$`)[0], "/data")
	wantEqual(t, "place of the binary", theStep(t, "COPY", `^--from=build /out/ (\S+)$`)[1]+"jetpost", entrypoint)
}

// TestDockerfileBuilds runs the Dockerfile's own build step on what a build
// would send, and the binary with nothing around it.
func TestDockerfileBuilds(t *testing.T) {
	t.Parallel()
	image := theStep(t, "FROM", `^golang:(\S+) AS build$`)[1]
	wants := regexp.MustCompile(`(?m)^go (\S+)$`).FindSubmatch(readText(t, "../../go.mod"))
	if version.Compare("go"+image, version.Lang("go"+string(wants[1]))) < 0 {
		t.Errorf("the Dockerfile builds with Go %s, go.mod wants %s", image, wants[1])
	}
	out := t.TempDir()
	build := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(theStep(t, "RUN", `^.*go build .*$`)[0], "/out/", out+"/"))
	build.Dir = stageBuildContext(t)
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, text)
	}
	binary := filepath.Join(out, "jetpost")
	program, err := elf.Open(binary)
	testkit.Must(t, err)
	defer func() { testkit.Must(t, program.Close()) }()
	for _, part := range program.Progs {
		if part.Type == elf.PT_INTERP || part.Type == elf.PT_DYNAMIC {
			t.Errorf("the binary is not static: it has a %s", part.Type)
		}
	}
	code, stdout, stderr := harness.RunCommand(t, []string{}, binary, "version")
	if code != exitOK || strings.TrimSpace(stdout) == "" || stderr != "" {
		t.Errorf("version: exit code %d, %q\n%s", code, stdout, stderr)
	}
}

// stageBuildContext copies what .dockerignore does not name, so that a pattern
// which leaves out too much breaks the build here and not at a user's.
func stageBuildContext(t *testing.T) string {
	t.Helper()
	root, staged := "../..", t.TempDir()
	var patterns []string
	for line := range strings.Lines(string(readText(t, filepath.Join(root, ".dockerignore")))) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			patterns = append(patterns, line)
		}
	}
	testkit.Must(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch to := filepath.Join(staged, name); {
		case matches(t, patterns, name) && entry.IsDir():
			return fs.SkipDir
		case matches(t, patterns, name), !entry.IsDir() && !entry.Type().IsRegular():
			return nil
		case entry.IsDir():
			return os.MkdirAll(to, 0o700)
		default:
			text, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(to, text, 0o600))
		}
	}))
	return staged
}

// matches knows the plain patterns of .dockerignore, which begin at its root.
func matches(t *testing.T, patterns []string, name string) bool {
	t.Helper()
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if strings.Contains(pattern, "**") || strings.HasPrefix(pattern, "!") {
			t.Fatalf(".dockerignore: %q is a form that this test does not know", pattern)
		}
		matched, err := filepath.Match(pattern, name)
		testkit.Must(t, err)
		return matched
	})
}

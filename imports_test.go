package jetpost_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/jetpost/jetpost"

// A layer says which packages of this module the packages of one directory may
// import. Paths are relative to the module, "." is its root, "dir/..." stands
// for everything below dir, and "..." for every package but commands.
type layer struct {
	dir   string
	use   []string // by any file
	tests []string // by _test.go files as well
}

// layers has one entry for every directory. The most specific one counts. A package
// without an entry fails until somebody decides where it belongs.
func layers() []layer {
	drivers := []string{"store/postgres", "store/sqlite"}
	parts := slices.Concat(drivers, []string{"internal/natstest", "internal/pgtest", "internal/testkit", "internal/xspectest", "xapi/xsim"})
	handlers := []string{".", "publishers", "store", "xapi", "xapi/tweettext", "internal/secret"}
	return []layer{
		{dir: "."},
		{dir: "publishers", use: []string{"."}, tests: []string{"internal/natstest"}},

		{dir: "xapi", tests: []string{"xapi/xsim", "internal/xspectest"}},
		{dir: "xapi/tweettext"},
		// The simulator shares nothing with the client, tests included: what
		// they had in common they could be wrong about together.
		{dir: "xapi/xsim", tests: []string{"internal/xspectest"}},

		{dir: "store", use: []string{".", "internal/secret"}, tests: slices.Concat(drivers, []string{"internal/disktest"})},
		{
			dir: "store/...", use: []string{".", "store", "store/internal/rules", "internal/secret"},
			tests: []string{"store/internal/storetest", "internal/pgtest", "internal/testkit"},
		},
		{dir: "store/internal/rules", use: []string{".", "store", "internal/secret"}},
		{dir: "store/internal/storetest", use: []string{".", "store", "store/internal/rules", "internal/secret", "internal/testkit"}},

		{
			dir: "consumers", use: slices.Concat(handlers, []string{"internal/admission"}),
			tests: slices.Concat(parts, []string{"internal/admission/admissiontest"}),
		},
		{
			dir: "internal/admission", use: []string{".", "publishers", "store", "xapi"},
			tests: []string{"internal/admission/admissiontest", "internal/natstest", "internal/testkit"},
		},
		{dir: "internal/admission/admissiontest", use: []string{"publishers"}},
		{dir: "internal/forecast", use: []string{".", "internal/admission", "publishers", "xapi"}},
		{
			dir: "internal/control", use: []string{
				".", "publishers", "store", "xapi", "xapi/tweettext", "consumers", "internal/admission", "internal/forecast", "internal/secret",
			},
			tests: slices.Concat(parts, []string{"client"}),
		},
		{dir: "client", use: []string{"."}, tests: []string{"internal/natstest"}},
		{
			dir: "web", use: []string{".", "store", "xapi", "xapi/tweettext", "internal/secret"},
			tests: slices.Concat(parts, []string{"client", "consumers", "internal/control", "publishers"}),
		},
		{dir: "web/api", use: []string{".", "client"}, tests: []string{"internal/xspectest"}},

		{dir: "internal/secret"},
		{dir: "internal/health"},
		{dir: "internal/telemetry", use: []string{".", "consumers", "internal/health", "store", "xapi"}},
		{dir: "internal/testkit"},
		{dir: "internal/natstest", use: []string{"internal/testkit"}},
		{dir: "internal/pgtest", use: []string{"internal/testkit"}},
		{dir: "internal/disktest", use: []string{"internal/testkit"}},
		{dir: "internal/xspectest"},
		{dir: "internal/app", use: []string{"..."}},
		{dir: "internal/cli", use: []string{"..."}},
		{dir: "internal/e2e", tests: []string{"...", "internal/cli", "internal/e2e/harness"}},
		{dir: "internal/e2e/harness", use: []string{"...", "internal/cli"}},
		{dir: "internal/chaos", use: []string{"...", "internal/e2e/harness"}},
		{dir: "internal/chaos/cmd/...", use: []string{"internal/chaos", "internal/e2e/harness"}},
		{dir: "cmd/...", use: []string{"internal/cli"}},
		// An example uses what a program of another module can use.
		{dir: "examples/go/...", use: []string{".", "client", "publishers"}},
	}
}

// outside are the packages that none below them may import: the command line and what runs it.
func outside() []string {
	return []string{"cmd/...", "internal/cli", "internal/e2e/...", "internal/e2e", "internal/chaos/...", "internal/chaos", "examples/..."}
}

// runners run the program, for tests and for chaos.
func runners() []string { return []string{"internal/e2e/harness", "internal/chaos"} }

// A fence keeps a package to some directories, whatever the layers say.
type fence struct {
	target string // import path; everything below it counts too
	only   []string
	never  []string
	tests  bool // whether tests are bound by it
	reason string
}

func fences() []fence {
	return []fence{
		{
			target: module + "/xapi/xsim", only: append(runners(), "internal/app", "internal/cli"),
			reason: "only what starts a simulator for a person may hold one",
		},
		{
			target: module + "/internal/testkit", only: append(runners(), "store/internal/storetest", "internal/disktest", "internal/natstest", "internal/pgtest"),
			reason: "it is for tests",
		},
		{target: module + "/internal/disktest", only: runners(), reason: "it is for tests"},
		{target: module + "/internal/natstest", only: runners(), reason: "it is for tests"},
		{target: module + "/internal/pgtest", only: runners(), reason: "it is for tests"},
		{
			target: module + "/store/internal/rules", only: []string{"store/postgres", "store/sqlite", "store/internal/storetest", "store/internal/rules"}, tests: true,
			reason: "it is for the ledger's drivers and their suite",
		},
		{
			target: "github.com/nats-io/nats.go", never: []string{"store", "store/...", "xapi", "xapi/..."}, tests: true,
			reason: "the ledger and the X client know nothing of messages",
		},
		{
			target: "github.com/getkin/kin-openapi", only: []string{"internal/xspectest"}, tests: true,
			reason: "schemas are held to in tests alone, in one place",
		},
		{
			target: module + "/internal/xspectest", only: []string{},
			reason: "only tests hold anything to X's schemas",
		},
		{
			target: "github.com/prometheus/client_golang", only: []string{"internal/telemetry"},
			reason: "handlers tell an observer, and one place makes metrics of it",
		},
		{
			target: "go.opentelemetry.io/otel/sdk", only: []string{"internal/telemetry"},
			reason: "where spans go is said in one place",
		},
		{
			target: "go.opentelemetry.io/otel", never: []string{".", "store", "store/...", "xapi", "xapi/..."},
			reason: "importers of the contract, the ledger and the X client shall not link it",
		},
		{
			target: "github.com/nats-io/nats-server/v2", only: []string{"internal/..."},
			reason: "the server is embedded in one place, and importers of this module shall not link it",
		},
	}
}

// A goPackage is one package, as go list reports it.
type goPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestImports(t *testing.T) {
	t.Parallel()
	packages := listPackages(t)
	if len(packages) == 0 {
		t.Fatal("go list names no package")
	}
	for _, violation := range importViolations(packages) {
		t.Error(violation)
	}
}

// TestImportsSeesViolations breaks every kind of rule once.
func TestImportsSeesViolations(t *testing.T) {
	t.Parallel()
	const nats, server = "github.com/nats-io/nats.go/jetstream", "github.com/nats-io/nats-server/v2/server"
	ours := func(dirs ...string) []string {
		for i, dir := range dirs {
			dirs[i] = path.Join(module, dir)
		}
		return dirs
	}
	tests := []struct {
		name string
		dir  string
		use  []string
		test []string
		want int
	}{
		{name: "app imports a command", dir: "internal/app", use: ours("cmd/jetpost"), want: 1},
		{name: "app imports the command line", dir: "internal/app", use: ours("internal/cli"), want: 1},
		{name: "app imports what tests share", dir: "internal/app", use: ours("internal/testkit"), want: 1},
		{name: "app's tests import what tests share", dir: "internal/app", test: ours("internal/testkit", "internal/natstest")},
		{name: "chaos imports what runs the program", dir: "internal/chaos", use: ours("internal/e2e/harness", "internal/pgtest", "xapi/xsim")},
		{name: "app imports everything else", dir: "internal/app", use: append(ours("web", "xapi/xsim", "."), nats, server)},
		{name: "command imports the command line", dir: "cmd/jetpost", use: ours("internal/cli")},
		{name: "command imports more", dir: "cmd/jetpost", use: ours("internal/app"), want: 1},
		{name: "command line imports everything", dir: "internal/cli", use: append(ours("internal/app", "xapi/xsim"), nats)},
		{name: "command line imports what runs it", dir: "internal/cli", use: ours("internal/e2e/harness"), want: 1},
		{name: "command imports the server", dir: "cmd/jetpost", use: []string{server}, want: 1},
		{name: "client imports publishers", dir: "client", use: ours("publishers"), want: 1},
		{name: "client imports the contract and NATS", dir: "client", use: append(ours("."), nats)},
		{name: "control imports app", dir: "internal/control", use: ours("internal/app"), want: 1},
		{name: "control imports down", dir: "internal/control", use: append(ours(".", "publishers", "store", "xapi", "consumers", "internal/forecast"), nats)},
		{name: "consumers import control", dir: "consumers", use: ours("internal/control"), want: 1},
		{name: "forecast asks the ledger", dir: "internal/forecast", use: ours("store"), want: 1},
		{name: "admission imports consumers", dir: "internal/admission", use: ours("consumers"), want: 1},
		{name: "admission's helper is for tests", dir: "consumers", use: ours("internal/admission/admissiontest"), want: 1},
		{name: "consumers import down", dir: "consumers", use: append(ours(".", "publishers", "store", "xapi", "internal/admission"), nats)},
		{name: "consumers import the simulator", dir: "consumers", use: ours("xapi/xsim"), want: 2},
		{name: "consumers import web", dir: "consumers", use: ours("web"), want: 1},
		{name: "consumers' tests import the simulator", dir: "consumers", test: ours("consumers", "xapi/xsim", "store/sqlite")},
		{name: "driver imports its suite", dir: "store/sqlite", use: ours("store/internal/storetest"), want: 1},
		{name: "driver's tests import its suite", dir: "store/sqlite", test: ours("store/internal/storetest", "store/internal/rules")},
		{name: "drivers import the rules", dir: "store/postgres", use: ours("store", "store/internal/rules")},
		{name: "suite imports the rules", dir: "store/internal/storetest", use: ours("store", "store/internal/rules")},
		{name: "rules import a driver", dir: "store/internal/rules", use: ours("store/sqlite"), want: 1},
		{name: "store imports the rules", dir: "store", use: ours("store/internal/rules"), want: 2},
		{name: "store's tests import the rules", dir: "store", test: ours("store/internal/rules"), want: 2},
		{name: "app imports the rules", dir: "internal/app", use: ours("store/internal/rules"), want: 1},
		{name: "layer unknown", dir: "util", want: 1},
		{name: "publishers import store", dir: "publishers", use: ours("store"), want: 1},
		{name: "root imports publishers", dir: ".", use: ours("publishers"), want: 1},
		{name: "root's tests import publishers", dir: ".", test: ours("publishers"), want: 1},
		{name: "secret imports root", dir: "internal/secret", use: ours("."), want: 1},
		{name: "simulator's tests import the client", dir: "xapi/xsim", test: ours("xapi"), want: 1},
		{name: "store imports xapi", dir: "store", use: ours("xapi"), want: 1},
		{name: "store's tests import NATS", dir: "store/sqlite", test: []string{nats}, want: 1},
		{name: "web imports app", dir: "web", use: ours("internal/app"), want: 1},
		{name: "web's tests import the server", dir: "web", test: []string{server}},
		{name: "xapi imports NATS", dir: "xapi", use: []string{nats}, want: 1},
		{name: "xapi imports root", dir: "xapi", use: ours("."), want: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := importViolations([]goPackage{{
				ImportPath: path.Join(module, tt.dir), Imports: tt.use, XTestImports: tt.test,
			}})
			if len(got) != tt.want {
				t.Errorf("got %d violations %q, want %d", len(got), got, tt.want)
			}
		})
	}
}

// listPackages asks the go command, which knows what a build of this module for
// this machine contains. Modules nested in it, such as bench, are not part of it.
func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("list packages: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("list packages: %v", err)
	}
	var packages []goPackage
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		switch err := decoder.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatalf("decode go list: %v", err)
		}
		packages = append(packages, p)
	}
}

func importViolations(packages []goPackage) []string {
	var violations []string
	for _, p := range packages {
		dir := directory(p.ImportPath)
		rule, ok := layerOf(dir)
		if !ok {
			violations = append(violations, fmt.Sprintf("package %s stands in no layer: name it in layers()", dir))
			continue
		}
		for _, target := range p.Imports {
			violations = append(violations, check(rule, dir, target, false)...)
		}
		for _, target := range slices.Concat(p.TestImports, p.XTestImports) {
			violations = append(violations, check(rule, dir, target, true)...)
		}
	}
	return violations
}

func check(rule layer, dir, target string, test bool) []string {
	from := "package " + dir
	allowed := rule.use
	if test {
		from = "a test of " + from
		allowed = append(slices.Concat(rule.use, rule.tests), dir)
	}
	var violations []string
	if below(target, module) && !within(directory(target), allowed) {
		violations = append(violations, fmt.Sprintf("%s must not import %s: of this module it may import only %q", from, target, allowed))
	}
	for _, f := range fences() {
		if !below(target, f.target) || test && !f.tests {
			continue
		}
		if f.only != nil && !within(dir, f.only) || within(dir, f.never) {
			violations = append(violations, fmt.Sprintf("%s must not import %s: %s", from, target, f.reason))
		}
	}
	return violations
}

func layerOf(dir string) (layer, bool) {
	var best layer
	found := false
	for _, l := range layers() {
		if l.dir == dir {
			return l, true
		}
		if within(dir, []string{l.dir}) && len(l.dir) > len(best.dir) {
			best, found = l, true
		}
	}
	return best, found
}

func within(dir string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if pattern == "..." {
			return !within(dir, outside())
		}
		parent, isTree := strings.CutSuffix(pattern, "/...")
		return dir == pattern || isTree && strings.HasPrefix(dir, parent+"/")
	})
}

func below(importPath, root string) bool {
	return importPath == root || strings.HasPrefix(importPath, root+"/")
}

func directory(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

// exits end the process. Anywhere but in a command they would be a hidden way out.
func exits() map[string][]string {
	return map[string][]string{
		"log":     {"Fatal", "Fatalf", "Fatalln"},
		"os":      {"Exit"},
		"syscall": {"Exit"},
	}
}

// processCalls end the process or read its environment, which would be a hidden setting.
func processCalls() map[string][]string {
	calls := exits()
	calls["os"] = append(calls["os"], "Environ", "ExpandEnv", "Getenv", "LookupEnv")
	calls["syscall"] = append(calls["syscall"], "Environ", "Getenv")
	return calls
}

func TestProcessIsLeftToCommands(t *testing.T) {
	t.Parallel()
	for _, file := range productionFiles(t) {
		// Tests are told where a database is by the environment alone. What runs programs
		// hands the environment on, and the one that they start as a browser shows it.
		if within(path.Dir(file), []string{"cmd/...", "examples/...", "internal/chaos/cmd/...", "internal/e2e/harness", "internal/pgtest", "internal/disktest", "internal/testkit"}) {
			continue
		}
		calls := processCalls()
		if path.Dir(file) == "internal/cli" { // settings are its part
			calls = exits()
		}
		violations, err := processViolations(file, nil, calls)
		if err != nil {
			t.Fatal(err)
		}
		for _, violation := range violations {
			t.Error(violation)
		}
	}
}

// TestProcessIsLeftToCommandsSeesViolations hides the calls as far as Go allows.
func TestProcessIsLeftToCommandsSeesViolations(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, source string
		want         int
	}{
		{"dot import", `import . "os"; func f() { Exit(1) }`, 1},
		{"harmless", `import ("log"; "os"); func f() { log.Print(os.Args) }`, 0},
		{"log ends the process", `import "log"; func f() { log.Fatal() }`, 1},
		{"method value", `import "os"; var get = os.Getenv`, 1},
		{"plain", `import "os"; func f() { os.Exit(len(os.Environ())) }`, 2},
		{"renamed", `import sys "os"; func f() { _, _ = sys.LookupEnv("X") }`, 1},
		{"syscall", `import "syscall"; func f() { syscall.Exit(0) }`, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := processViolations("p.go", "package p; "+tt.source, processCalls())
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != tt.want {
				t.Errorf("got %d violations %q, want %d", len(got), got, tt.want)
			}
		})
	}
}

// productionFiles finds the module's Go files other than tests by walking, so
// that files built only for other systems are among them.
func productionFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			_, nested := os.Stat(filepath.Join(name, "go.mod"))
			if name != "." && (nested == nil || strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
			files = append(files, filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("walk module: %v", err)
	}
	if len(files) == 0 {
		t.Fatal("walk module: no Go file found")
	}
	return files
}

// processViolations looks for calls, by package, in source or, where that is nil, the file.
func processViolations(file string, source any, calls map[string][]string) ([]string, error) {
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, file, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", file, err)
	}
	var violations []string
	forbidden := make(map[string][]string) // by the name that the file gives the package
	for _, spec := range tree.Imports {
		importPath, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("parse %s: import %s: %w", file, spec.Path.Value, err)
		}
		names, watched := calls[importPath]
		switch {
		case !watched:
		case spec.Name == nil:
			forbidden[importPath] = names
		case spec.Name.Name == ".":
			violations = append(violations, fmt.Sprintf("%s: a dot import of %s hides its calls", set.Position(spec.Pos()), importPath))
		default:
			forbidden[spec.Name.Name] = names
		}
	}
	ast.Inspect(tree, func(node ast.Node) bool {
		selector, ok := node.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := selector.X.(*ast.Ident); ok && slices.Contains(forbidden[x.Name], selector.Sel.Name) {
			violations = append(violations, fmt.Sprintf("%s: %s.%s is for commands only: take a value, return an error",
				set.Position(selector.Pos()), x.Name, selector.Sel.Name))
		}
		return true
	})
	return violations, nil
}

// admissionAsked are the questions whether X may be called now, with the functions that
// ask them. All but the first three belong to package admission, which alone knows
// their order. Other code asks for a permit.
func admissionAsked() map[string][]string {
	return map[string][]string{
		"Ask":    {"consumers laneRun.reconcile", "consumers threadRun.post", "consumers uploads.fits", "internal/admission Pass.Permit", "internal/admission Pass.reserve"},
		"Open":   {"consumers laneRun.advance"},
		"Permit": {"consumers threadRun.intend", "internal/admission Call", "internal/admission Pass.Ahead"},

		"Active":     {"consumers desiredPause.holds", "internal/admission Gate.Over", "internal/admission Gate.Retell", "internal/admission Gate.Paused", "internal/admission Gate.keep", "internal/admission Pass.Ahead", "internal/admission Pass.Open"},
		"Counting":   {"internal/admission Pass.short"},
		"Exhausted":  {"internal/admission usedUpByApp", "internal/admission windowReason"},
		"RateLimits": nil,
		"RateShort":  nil,
		"Short":      {"internal/admission Pass.short"},
		"Reserve":    {"consumers patientLedger.Reserve", "internal/admission Pass.GiveBack", "internal/admission Pass.reserve"},
		"Sent":       {"consumers patientLedger.Sent", "internal/admission Pass.postingLimit"},

		// Token care has no windows and no account's pause: it asks the gate. Others ask it
		// about wake-ups, of which none comes in a pause.
		"Allow":  {"consumers refresher.exchange", "internal/admission Gate.Allow", "internal/admission Pass.Permit"},
		"Outage": {"consumers refreshHandler.claim", "internal/admission Pass.heard"},
		"Paused": {
			"consumers publishHandler.unasked",
			"consumers refreshHandler.claim", "consumers refreshHandler.one", "consumers refreshHandler.tick", "consumers refresher.Fresh",
			"consumers sweeper.release", "internal/admission Pass.Ahead", "internal/admission Pass.Open", "internal/admission Pass.Pause", "internal/admission Pass.heard",
			"internal/admission Pass.paused",
		},
	}
}

func TestAdmissionIsAskedInOnePlace(t *testing.T) {
	t.Parallel()
	got := map[string][]string{}
	for _, file := range productionFiles(t) {
		if !within(path.Dir(file), []string{"consumers", "internal/admission"}) {
			continue
		}
		if err := findCallers(file, nil, got); err != nil {
			t.Fatal(err)
		}
	}
	for question, want := range admissionAsked() {
		slices.Sort(want)
		if callers := slices.Compact(slices.Sorted(slices.Values(got[question]))); !slices.Equal(callers, want) {
			t.Errorf("%s is asked by %q, want %q", question, callers, want)
		}
	}
}

// TestAdmissionIsAskedInOnePlaceSeesCallers asks once more.
func TestAdmissionIsAskedInOnePlaceSeesCallers(t *testing.T) {
	t.Parallel()
	got := map[string][]string{}
	source := `package p; func (r *run) f() { go func() { _, _ = r.gate.Paused(now) }() }; func g(c *Client) { ask := c.RateShort; ask() }`
	if err := findCallers("consumers/p.go", source, got); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got["Paused"], []string{"consumers run.f"}) || !slices.Equal(got["RateShort"], []string{"consumers g"}) {
		t.Errorf("got %q", got)
	}
}

// findCallers adds to callers, by question, who asks it in the source or, where that is
// nil, the file.
func findCallers(file string, source any, callers map[string][]string) error {
	tree, err := parser.ParseFile(token.NewFileSet(), file, source, parser.SkipObjectResolution)
	if err != nil {
		return fmt.Errorf("parse %s: %w", file, err)
	}
	questions := admissionAsked()
	for _, decl := range tree.Decls {
		caller := path.Dir(file) + " "
		if f, ok := decl.(*ast.FuncDecl); ok {
			if f.Recv != nil {
				of := f.Recv.List[0].Type
				if pointer, ok := of.(*ast.StarExpr); ok {
					of = pointer.X
				}
				caller += fmt.Sprint(of) + "."
			}
			caller += f.Name.Name
		}
		ast.Inspect(decl, func(node ast.Node) bool {
			selector, ok := node.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			name, of := selector.Sel.Name, ""
			switch x := selector.X.(type) {
			case *ast.Ident:
				of = x.Name
			case *ast.SelectorExpr:
				of = x.Sel.Name
			}
			_, watched := questions[name]
			// The type, and what media sources have of these names.
			if slices.Contains([]string{"admission.Permit", "Media.Open", "s.Allow", "s.Open"}, of+"."+name) {
				watched = false
			}
			if watched {
				callers[name] = append(callers[name], caller)
			}
			return true
		})
	}
	return nil
}

// maxTestLines is how long a function of a test may be.
const maxTestLines = 80

// suites are the packages of what tests share, which are not in test files.
func suites() []string {
	return []string{
		"internal/disktest", "internal/e2e/harness", "internal/natstest", "internal/pgtest", "internal/testkit", "internal/xspectest",
		"store/internal/storetest",
	}
}

// TestTestsFitAScreen: a test that is longer is several tests, or a story whose steps have
// names.
func TestTestsFitAScreen(t *testing.T) {
	t.Parallel()
	files := testFiles(t)
	for _, file := range files {
		violations, err := longFunctions(file, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, violation := range violations {
			t.Error(violation)
		}
	}
	if len(files) < 100 {
		t.Errorf("found %d test files; are they no longer seen?", len(files))
	}
}

func TestTestsFitAScreenSeesLongOnes(t *testing.T) {
	t.Parallel()
	fits := "package p\n\nfunc (b *bundle) fits() {" + strings.Repeat("\n", maxTestLines-1) + "}\n"
	long := "\nfunc TestLong(t *testing.T) {" + strings.Repeat("\n", maxTestLines) + "}\n"
	got, err := longFunctions("p_test.go", fits+long)
	if want := []string{"p_test.go:84:1: TestLong has 81 lines, at most 80 are allowed"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

// testFiles are those of all modules of the repository, with what tests share.
func testFiles(t *testing.T) (files []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != "." && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		case strings.HasSuffix(name, "_test.go"), strings.HasSuffix(name, ".go") && within(filepath.ToSlash(filepath.Dir(name)), suites()):
			files = append(files, filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("walk repository: %v", err)
	}
	return files
}

// longFunctions are the functions of the source or, where that is nil, the file that do
// not fit.
func longFunctions(file string, source any) (violations []string, err error) {
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, file, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", file, err)
	}
	for _, decl := range tree.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		if lines := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1; lines > maxTestLines {
			violations = append(violations, fmt.Sprintf("%s: %s has %d lines, at most %d are allowed", set.Position(f.Pos()), f.Name.Name, lines, maxTestLines))
		}
	}
	return violations, nil
}

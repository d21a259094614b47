package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// The verdicts of a Finding.
const (
	CheckOK      = "ok"
	CheckWarning = "warning" // works, and will hurt one day
	CheckWrong   = "wrong"   // does not work
	CheckSkipped = "skipped" // cannot be told, since something before it is wrong
)

// Finding is one check of a Doctor.
type Finding struct {
	Check   string `json:"check"`
	Verdict string `json:"verdict"`
	Detail  string `json:"detail"`
	Do      string `json:"do,omitempty"`
}

const (
	// checkWithin bounds each question of a Doctor.
	checkWithin = 10 * time.Second
	// filesBeside is how many files a worker has open beside those of its slots: its
	// database connections, NATS, the lifeboat, the health listener.
	filesBeside, filesOfSlot = 128, 8
)

// Doctor checks what a worker with this configuration needs, before it
// is started. It changes nothing, and calls X only without a token, which costs nothing.
type Doctor struct {
	Config   Config
	Callback string // address at which 'accounts connect' waits
	Log      *slog.Logger

	conn   *Connection
	ledger store.Store
}

// Examine makes every check, in the order in which they depend on each other.
func (d *Doctor) Examine(ctx context.Context) (found []Finding) {
	defer d.close()
	for _, check := range []struct {
		name string
		make func(context.Context) Finding
	}{
		{"configuration", d.configuration},
		{"database", d.database},
		{"encryption keys", d.keys},
		{"commits", d.commits},
		{"NATS", d.nats},
		{"streams and consumers", d.topology},
		{"producers", d.walls},
		{"clock", d.clock},
		{"disks", d.disks},
		{"lifeboat", d.lifeboat},
		{"open files", d.files},
		{"X", d.x},
		{"callback URI", d.callback},
	} {
		once, cancel := context.WithTimeout(ctx, checkWithin)
		f := check.make(once)
		cancel()
		f.Check = check.name
		found = append(found, f)
	}
	return found
}

func (d *Doctor) close() {
	if d.conn != nil {
		d.conn.Close()
	}
	if d.ledger != nil {
		_ = d.ledger.Close() // nothing is pending
	}
}

func passed(format string, args ...any) Finding {
	return Finding{Verdict: CheckOK, Detail: fmt.Sprintf(format, args...)}
}

func failed(err error) Finding {
	return Finding{Verdict: CheckWrong, Detail: oneLine(err), Do: Hint(err)}
}

func skipped(why string) Finding { return Finding{Verdict: CheckSkipped, Detail: why} }

// natsAlone tells a configuration for commands and pages, which need no database.
func (d *Doctor) natsAlone() bool { return d.Config.DatabaseURL.Empty() && d.Config.NATS.URL != "" }

// noLedger says why nothing can be told that is in the ledger.
func (d *Doctor) noLedger() Finding {
	if d.natsAlone() {
		return skipped("DATABASE_URL is not set, without which it cannot be checked")
	}
	return skipped("the database does not answer")
}

func (d *Doctor) configuration(context.Context) Finding {
	if d.natsAlone() {
		if err := d.Config.validate(needs{nats: true}); err != nil {
			return failed(err)
		}
		return passed("NATS_URL alone, enough for commands and 'jetpost web'; a worker needs DATABASE_URL, HUB_ENCRYPTION_KEY and X_CLIENT_ID too")
	}
	if err := d.Config.Validate(); err != nil {
		return failed(err)
	}
	return passed("complete: %s", d.Config.Installation())
}

// database opens the ledger, with keys that may be wrong.
func (d *Doctor) database(ctx context.Context) Finding {
	if d.natsAlone() {
		return d.noLedger()
	}
	ledger, err := d.Config.openUnchecked(ctx)
	if err != nil {
		return failed(err)
	}
	d.ledger = ledger
	if _, err := ledger.LedgerID(ctx); err != nil {
		return failed(databaseError(err))
	}
	return passed("answers, and its schema is this version's")
}

func (d *Doctor) keys(ctx context.Context) Finding {
	if d.ledger == nil {
		return d.noLedger()
	}
	if err := d.ledger.CheckKeys(ctx); err != nil {
		return failed(err)
	}
	return passed("they open what the database holds")
}

// durable is a ledger whose settings may give up what was committed.
type durable interface {
	LosesCommits(ctx context.Context) (settings []string, err error)
}

func (d *Doctor) commits(ctx context.Context) Finding {
	ledger, is := d.ledger.(durable)
	switch {
	case d.ledger == nil:
		return d.noLedger()
	case !is:
		return passed("each is on disk before it counts")
	}
	settings, err := ledger.LosesCommits(ctx)
	switch {
	case err != nil:
		return failed(databaseError(err))
	case len(settings) > 0:
		return Finding{
			Verdict: CheckWrong, Detail: "a crash of PostgreSQL loses what was committed: " + strings.Join(settings, ", "),
			Do: "set these to on: an intent that is lost is a post that may go out twice",
		}
	}
	return passed("each is on disk before it counts")
}

func (d *Doctor) nats(ctx context.Context) Finding {
	conn, err := d.Config.Connect(ctx, d.Log, "jetpost doctor")
	if err != nil {
		return failed(err)
	}
	d.conn = conn
	took, err := conn.Conn.RTT()
	if err != nil {
		return failed(natsError(d.Config.NATS.URL, err))
	}
	return passed("nats-server %s at %s answers in %s", conn.Conn.ConnectedServerVersion(), conn.Conn.ConnectedUrlRedacted(), took.Round(time.Microsecond))
}

func (d *Doctor) topology(ctx context.Context) Finding {
	if d.conn == nil {
		return skipped("NATS does not answer")
	}
	if d.ledger == nil {
		return d.noLedger()
	}
	id, err := d.ledger.LedgerID(ctx)
	if err == nil {
		err = publishers.Check(ctx, d.conn.JS, d.Config.Topology(d.conn.Names, id))
	}
	if err != nil {
		return failed(err)
	}
	return passed("as 'jetpost setup' makes them, for this database")
}

// walls tells whether producers are kept apart, and whether a worker may do too much.
func (d *Doctor) walls(ctx context.Context) Finding {
	if d.conn == nil {
		return skipped("NATS does not answer")
	}
	walled, err := publishers.Walled(ctx, d.conn.JS, d.conn.Names)
	switch {
	case err != nil:
		return failed(err)
	case !walled:
		return Finding{Verdict: CheckWarning, Detail: strings.TrimPrefix(NoWalls, "warning: "), Do: NoWallsAdvice}
	case d.Config.NATS.User == setupUser:
		return Finding{
			Verdict: CheckWarning, Detail: "this is the user of 'jetpost setup', who may delete streams",
			Do: "run workers as NATS_USER=worker",
		}
	}
	return passed("have NATS accounts of their own")
}

func (d *Doctor) clock(ctx context.Context) Finding {
	if d.ledger == nil {
		return d.noLedger()
	}
	before := time.Now()
	there, err := d.ledger.Clock(ctx)
	if err != nil {
		return failed(databaseError(err))
	}
	return clockOf("the database's", before, there)
}

// clockOf compares a clock that was read since before with this machine's.
func clockOf(whose string, before, there time.Time) Finding {
	skew := before.Add(time.Since(before) / 2).Sub(there)
	if skew.Abs() > consumers.MaxSkew {
		return Finding{
			Verdict: CheckWrong, Detail: fmt.Sprintf("this machine's is %s from %s", skew.Round(time.Millisecond), whose),
			Do: fmt.Sprintf("keep both by NTP: beyond %s workers take no work", consumers.MaxSkew),
		}
	}
	return passed("within %s of %s", max(skew.Abs().Round(time.Millisecond), time.Millisecond), whose)
}

func (d *Doctor) disks(context.Context) Finding {
	out := passed("room enough")
	for i, disk := range d.Config.disks() {
		free := fmt.Sprintf("%d MiB are free at %s (%s)", disk.Free>>20, disk.Path, disk.What)
		switch {
		case disk.Free < health.DiskFull:
			return failed(&DiskError{disk})
		case disk.Free < health.DiskLow:
			return Finding{Verdict: CheckWarning, Detail: free, Do: "make room: below 32 MiB nothing is begun"}
		case i == 0:
			out = passed("%s", free)
		default:
			out.Detail += "; " + free
		}
	}
	return out
}

// lifeboat checks that the lifeboat can store a token pair.
func (d *Doctor) lifeboat(context.Context) Finding {
	dir := d.Config.Lifeboat
	fix := "let this user write there, or choose another directory with --lifeboat; it must outlive the process"
	info, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return passed("%s will be made by the first worker", dir)
	}
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory", dir)
	}
	if err != nil {
		return failed(&HintError{Err: err, Help: fix})
	}
	const writable = 2 // W_OK
	if err := syscall.Access(dir, writable); err != nil {
		return failed(&HintError{Err: fmt.Errorf("write to %s: %w", dir, err), Help: fix})
	}
	return passed("%s can be written", dir)
}

func (d *Doctor) files(context.Context) Finding {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return failed(err)
	}
	slots := d.Config.Slots
	if slots == 0 {
		slots = DefaultSlots
	}
	if need := uint64(filesBeside + filesOfSlot*slots); limit.Max < need {
		return Finding{
			Verdict: CheckWarning, Detail: fmt.Sprintf("the limit is %d, and %d slots may need %d", limit.Max, slots, need),
			Do: "raise it (LimitNOFILE= in systemd, ulimits in compose), or work with fewer --slots",
		}
	}
	return passed("the limit is %d", limit.Max)
}

// x asks X for a page that needs no token: that resolves its name, trusts its
// certificate, goes through a proxy where one is set, and shows its clock.
func (d *Doctor) x(ctx context.Context) Finding {
	if d.natsAlone() {
		return skipped("workers call it, and this is no worker's configuration")
	}
	address := d.Config.X.URL
	if address == "" {
		address = xapi.DefaultBaseURL
	}
	path := "/2/openapi.json"
	if d.Config.X.simulated() {
		path = simulatorPath
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+path, nil)
	if err != nil {
		return failed(err)
	}
	before := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		help := "check DNS, the firewall, and HTTPS_PROXY; certificates of your own go into SSL_CERT_FILE"
		if d.Config.X.simulated() {
			help = "start it with: jetpost sim, or correct X_API_URL"
		}
		return failed(&HintError{Err: err, Help: help})
	}
	_ = resp.Body.Close() // its status and its date say all
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return Finding{Verdict: CheckWarning, Detail: fmt.Sprintf("%s answers without a Date", address), Do: "check that it is X, and no proxy's page"}
	}
	// A Date has whole seconds, of which half a second is the middle.
	if f := clockOf("X's", before, date.Add(time.Second/2)); f.Verdict != CheckOK {
		return f
	}
	return passed("%s answers %s, and its clock agrees", address, resp.Status)
}

func (d *Doctor) callback(context.Context) Finding {
	if d.Config.X.simulated() {
		return passed("nothing to register: X is simulated")
	}
	return passed("X's developer console must list http://%s/callback; nobody but X can check that", d.Callback)
}

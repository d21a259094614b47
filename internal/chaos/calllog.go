package chaos

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// The findings about posts.
const (
	twice   = "duplicates" // posts that X has once too often
	missing = "holes"      // posts that X does not have, of a thread that goes on behind them
	unruly  = "order"      // posts at a wrong place, and jobs before their turn
	lost    = "lost"       // accepted jobs that X does not have, and nobody says why
	unclear = "unknown"    // requests that a person would have to settle
	failed  = "failed"
	differs = "ledger" // what the ledger says of a post or a request, and X does not
)

// publishCounts is what a run has seen.
type publishCounts struct{ posts, doubts, adopted, absent int }

// orderSlack is, in leases, how long an acceptance may take to be seen by others: its
// worker may be frozen, or the database away.
const orderSlack = 10

// requestRow is a request as the ledger has it; times are microseconds.
type requestRow struct {
	id, state, why            string
	seq, accepted, due, began int64
	postIDs                   []string
	onX                       int // place of its first post among those of its account
	thread                    *thread
}

// judge compares X's call log with the jobs, and the ledger with X's call log.
func (c *publishRun) judge() {
	ctx := c.T.Context()
	c.endFleet()
	for _, l := range c.fleet.all() {
		c.published.adopted += l.adopted
		c.published.absent += l.absent
	}
	testkit.Must(c.T, c.view.db.QueryRowContext(ctx, "SELECT count(*) FROM posts WHERE doubt_since IS NOT NULL").Scan(&c.published.doubts))
	requests := c.requests(ctx)
	total := 0
	for i, name := range c.names {
		posts := c.posts(name)
		c.judgeAccount(name, c.jobs[i], posts, requests[name])
		total += len(posts)
	}
	c.published.posts = total
	for _, v := range c.Sim.Violations() {
		c.findings.add("X's call log", "%s of %s: %s", v.Kind, v.Account, v.Detail)
	}
	if c.guard == "" {
		c.judgeSight()
	}
}

// posts are what X has of an account, but for those made by hand, the oldest first.
func (c *publishRun) posts(account string) []xsim.Post {
	return slices.DeleteFunc(c.Sim.Posts(account), func(p xsim.Post) bool { return strings.HasPrefix(p.Text, handmade) })
}

// surplus are the posts that X has more often than the jobs have their texts, and how
// often each text is missing.
func (c *publishRun) surplus(jobs []*thread, posts []xsim.Post) (extra []xsim.Post, short map[string]int) {
	short = map[string]int{}
	for _, j := range jobs {
		for _, text := range j.texts {
			short[text]++
		}
	}
	for _, p := range posts {
		if short[p.Text] == 0 {
			extra = append(extra, p)
			continue
		}
		short[p.Text]--
	}
	return extra, short
}

// judgeAccount compares one account.
func (c *publishRun) judgeAccount(account string, jobs []*thread, posts []xsim.Post, rows map[string]*requestRow) {
	extra, short := c.surplus(jobs, posts)
	for _, p := range extra {
		c.findings.add(twice, "%s has %q once too often, as %s below %q, since %s", account, p.Text, p.ID, p.InReplyTo, p.CreatedAt.Format(time.TimeOnly+".000"))
	}
	place := map[string]int{}
	for i, p := range posts {
		place[p.ID] = i
	}
	found := chains(posts)
	var begun []*requestRow
	lastSeq := int64(0)
	for _, j := range jobs {
		row := rows[j.id]
		if row == nil {
			if j.body != nil && c.guard == "" {
				c.findings.add(lost, "job %s of %s was never accepted", j.id, account)
			}
			continue
		}
		row.thread = j
		if row.seq < lastSeq {
			c.findings.add(unruly, "job %s of %s was accepted before the one before it", j.id, account)
		}
		lastSeq = row.seq
		i := bestChain(found, j.texts, row.postIDs)
		var chain []xsim.Post
		if i >= 0 {
			chain = found[i]
			found = slices.Delete(found, i, i+1)
			row.onX = place[chain[0].ID]
			begun = append(begun, row)
			c.judgeScattered(row, chain, place)
		}
		c.judgeThread(row, chain, short)
	}
	for _, chain := range found {
		// What is there too often was told already.
		if !slices.ContainsFunc(extra, func(p xsim.Post) bool { return p.Text == chain[0].Text }) {
			c.findings.add(unruly, "%s has %q at no place of a thread", account, chain[0].Text)
		}
	}
	c.judgePauseChanges(account, begun)
}

// chains are the posts by thread: each a post and its replies, in order. Of several
// replies to one post that which has replies itself goes on, or the first; the others
// begin chains of their own.
func chains(posts []xsim.Post) (list [][]xsim.Post) {
	replies := map[string][]xsim.Post{}
	known := map[string]bool{}
	for _, p := range posts {
		replies[p.InReplyTo] = append(replies[p.InReplyTo], p)
		known[p.ID] = true
	}
	var follow func(p xsim.Post)
	follow = func(p xsim.Post) {
		chain := []xsim.Post{p}
		for next := replies[p.ID]; len(next) > 0; next = replies[p.ID] {
			i := max(0, slices.IndexFunc(next, func(n xsim.Post) bool { return len(replies[n.ID]) > 0 }))
			p = next[i]
			chain = append(chain, p)
			for k, other := range next {
				if k != i {
					defer follow(other)
				}
			}
		}
		list = append(list, chain)
	}
	for _, p := range posts {
		if p.InReplyTo == "" || !known[p.InReplyTo] {
			follow(p)
		}
	}
	return list
}

// bestChain finds the thread on X that is a job's: the longest that begins with its
// texts, one without more before others, and of equal ones that which the ledger says.
func bestChain(list [][]xsim.Post, texts, ids []string) int {
	best, most := -1, 0
	for i, chain := range list {
		n := agree(chain, texts)
		if n == 0 {
			continue
		}
		worth := 4 * n
		if n == len(chain) {
			worth += 2
		}
		if len(ids) > 0 && chain[0].ID == ids[0] {
			worth++
		}
		if worth > most {
			best, most = i, worth
		}
	}
	return best
}

// agree counts the posts at the start of a thread that are as they should be.
func agree(chain []xsim.Post, texts []string) (n int) {
	for n < min(len(chain), len(texts)) && chain[n].Text == texts[n] {
		n++
	}
	return n
}

// judgeThread wants the thread of a job to be whole, at its time, and known to the
// ledger by the same ids. Short is how often X lacks each text.
func (c *publishRun) judgeThread(row *requestRow, chain []xsim.Post, short map[string]int) {
	j := row.thread
	n := agree(chain, j.texts)
	later := slices.IndexFunc(j.texts[n:], func(text string) bool { return short[text] == 0 })
	switch {
	case row.state == string(jetpost.StateUnknown):
		c.findings.add(unclear, "job %s of %s: %s", j.id, j.account, row.why)
	case row.state == string(jetpost.StateFailed):
		c.findings.add(failed, "job %s of %s: %s", j.id, j.account, row.why)
	case later > 0:
		c.findings.add(missing, "job %s of %s: X has post %d, and not the %d before it", j.id, j.account, n+later+1, later)
	case later == 0 || len(chain) > n:
		c.findings.add(unruly, "job %s of %s: X has %d of its posts at their place, of %d, and more elsewhere", j.id, j.account, n, len(j.texts))
	case n < len(j.texts) && c.guard != "" && row.state != string(jetpost.StatePublished):
		// A broken run ends before all is finished.
	case n < len(j.texts):
		c.findings.add(lost, "job %s of %s: X has %d of %d posts, the ledger says %s %s", j.id, j.account, n, len(j.texts), row.state, row.why)
	case row.state != string(jetpost.StatePublished):
		c.findings.add(differs, "job %s of %s is on X, the ledger says %s", j.id, j.account, row.state)
	}
	for i, id := range row.postIDs {
		if i >= n && id != "" || i < n && id != chain[i].ID {
			c.findings.add(differs, "post %d of job %s of %s is %q, says the ledger; X has %d posts of that thread: %s", i+1, j.id, j.account, id, n, idsOf(chain))
		}
	}
	if n > 0 && chain[0].CreatedAt.Before(j.at) {
		c.findings.add(unruly, "job %s of %s came %s before its time", j.id, j.account, j.at.Sub(chain[0].CreatedAt))
	}
}

func idsOf(posts []xsim.Post) (ids []string) {
	for _, p := range posts {
		ids = append(ids, p.ID)
	}
	return ids
}

// judgeScattered wants no other thread between the posts of one.
func (c *publishRun) judgeScattered(row *requestRow, chain []xsim.Post, place map[string]int) {
	for i, p := range chain {
		if place[p.ID] != row.onX+i {
			c.findings.add(unruly, "post %d of job %s of %s is not next to the one before it", i+1, row.thread.id, row.thread.account)
			return
		}
	}
}

// judgePauseChanges wants the jobs of an account in the order in which they were due, as far
// as that was known when each began.
func (c *publishRun) judgePauseChanges(account string, rows []*requestRow) {
	slices.SortFunc(rows, func(a, b *requestRow) int { return cmp.Compare(a.onX, b.onX) })
	for i, first := range rows {
		for _, second := range rows[i+1:] {
			due := cmp.Or(cmp.Compare(second.due, first.due), cmp.Compare(second.seq, first.seq)) < 0
			known := second.seq < first.seq || first.began > second.accepted+(orderSlack*c.claimFor).Microseconds()
			if due && known {
				c.findings.add(unruly, "job %s of %s came before %s, which was due before it", first.id, account, second.id)
			}
		}
	}
}

// judgeSight wants the run to have seen something.
func (c *publishRun) judgeSight() {
	for what, n := range map[string]int{
		"kills": int(c.fleet.kills.Load()), "freezes": int(c.fleet.freezes.Load()), "doubts": c.published.doubts,
		"posts found": c.published.adopted, "posts proven absent": c.published.absent,
	} {
		if n == 0 {
			c.findings.add("blind", "the run has seen no %s", what)
		}
	}
}

// requests are what the ledger says, by account and id.
func (c *publishRun) requests(ctx context.Context) map[string]map[string]*requestRow {
	c.T.Helper()
	v := c.view
	all := map[string]map[string]*requestRow{}
	_, err := rowsOf(ctx, v.db, "SELECT account, id, state, coalesce(reason_code, '') || ' ' || reason_detail, seq, "+
		v.micros("accepted_at")+", "+v.micros("due_at")+", coalesce("+v.micros("began_at")+", 0) FROM requests", func(scan scanFunc) (_ struct{}, err error) {
		var account string
		r := &requestRow{}
		err = scan(&account, &r.id, &r.state, &r.why, &r.seq, &r.accepted, &r.due, &r.began)
		if all[account] == nil {
			all[account] = map[string]*requestRow{}
		}
		all[account][r.id] = r
		return struct{}{}, err
	})
	testkit.Must(c.T, err)
	_, err = rowsOf(ctx, v.db, "SELECT account, request_id, coalesce(post_id, '') FROM posts ORDER BY account, request_id, idx", func(scan scanFunc) (_ struct{}, err error) {
		var account, id, postID string
		err = scan(&account, &id, &postID)
		if r := all[account][id]; r != nil {
			r.postIDs = append(r.postIDs, postID)
		}
		return struct{}{}, err
	})
	testkit.Must(c.T, err)
	return all
}

// tell tells the verdict.
func (c *publishRun) tell() {
	var told []string
	for _, kind := range []string{twice, missing, unruly, lost, unclear, failed} {
		told = append(told, fmt.Sprintf("%s=%d", kind, c.findings.counts[kind]))
	}
	c.conclude("threads=%d posts=%d accounts=%d workers=%d lease=%s kills=%d freezes=%d restarts=%d doubts=%d adopted=%d absent=%d sent_back=%d %s",
		c.sent.Load(), c.published.posts, c.accounts, c.workers, c.claimFor, c.fleet.kills.Load(), c.fleet.freezes.Load(), c.restarts,
		c.published.doubts, c.published.adopted, c.published.absent, c.sentBack.Load(), strings.Join(told, " "))
}

// The guards that a run can switch off, beside guardFence.
const (
	guardLedger    = "ledger"
	guardReconcile = "reconcile"
)

var brokenPublishGuards = map[string][]string{
	// The intent to send a post is forgotten as soon as it is written.
	guardLedger: {`
CREATE FUNCTION break_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.state = 'sending' AND OLD.state = 'pending' THEN
        NEW.state := 'pending';
    END IF;
    RETURN NEW;
END $$`, breakOnPost},
	// A post in doubt is taken for one that was not sent.
	guardReconcile: {`
CREATE FUNCTION break_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.state = 'sending' AND OLD.state = 'sending' THEN
        NEW.state := 'pending';
    END IF;
    RETURN NEW;
END $$`, breakOnPost},
	// Leases keep nobody away, and no claim is newer than another.
	guardFence: {`
CREATE FUNCTION break_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    NEW.fence := 1;
    IF NEW.lease_until IS NOT NULL THEN
        NEW.lease_until := clock_timestamp();
    END IF;
    RETURN NEW;
END $$`, `CREATE TRIGGER break_guard BEFORE UPDATE ON lanes FOR EACH ROW EXECUTE FUNCTION break_guard()`},
}

const breakOnPost = `CREATE TRIGGER break_guard BEFORE UPDATE ON posts FOR EACH ROW EXECUTE FUNCTION break_guard()`

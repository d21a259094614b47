package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// maxListed bounds what one look into the ledger reads.
	maxListed = 10_000 // requests
	// maxTimeline is how many posts of an account X shows at most, the newest ones.
	maxTimeline = 3200
	// timelinePage is how many of them X shows at a time.
	timelinePage = 100
	// timelineLag is how young a post is of which X's timeline may not know yet.
	timelineLag = time.Minute
)

// VerifyQuery selects the posts to compare: those of one account or, with "", of all, that
// were sent since a time, or all that X shows.
type VerifyQuery struct {
	Account string
	Since   time.Time
}

// VerifyPlan is what a comparison reads from X. X charges for each post that it shows.
type VerifyPlan struct {
	Accounts []VerifyAccount `json:"accounts"`
	// Posts counts the posts in the ledger. MaxPosts is the most that X may show.
	Posts      int     `json:"posts"`
	MaxPosts   int     `json:"max_posts"`
	CostUSD    float64 `json:"cost_estimate_usd"` // of Posts
	MaxCostUSD float64 `json:"max_cost_usd"`
	since      time.Time
}

// VerifyAccount is one account's part of a VerifyPlan.
type VerifyAccount struct {
	Account string `json:"account"`
	Posts   int    `json:"posts"`
	userID  string
	ours    []ledgerPost
}

// ledgerPost is a post in the ledger, live or deleted.
type ledgerPost struct {
	key    store.Key
	record store.PostRecord
	post   jetpost.Post // none where only a newer jetpost can read its request
	read   bool
}

// Deviation is how ledger and timeline differ.
type Deviation string

const (
	PostMissing   Deviation = "missing"   // live in the ledger, but not on X
	PostDoubled   Deviation = "doubled"   // on X a second time: the same text at the same place
	PostUndeleted Deviation = "undeleted" // deleted in the ledger, but still on X
	PostChanged   Deviation = "changed"   // its text on X differs
	PostForeign   Deviation = "foreign"   // on X, but not sent by jetpost
)

// Wrong tells whether the finding is a fault, if only jetpost posts for the account and
// nobody deletes posts by hand.
func (d Deviation) Wrong() bool { return d == PostMissing || d == PostDoubled || d == PostUndeleted }

// PostFinding is one post that deviates.
type PostFinding struct {
	Kind Deviation `json:"kind"`
	// ID and Index are of the ledger's post; absent of a foreign one.
	ID    string `json:"id,omitempty"`
	Index *int   `json:"index,omitempty"`
	// PostID and URL are of the post on X or, of a missing one, where it was. Text is X's,
	// or ours.
	PostID string `json:"post_id"`
	URL    string `json:"url"`
	Text   string `json:"text"`
}

// Verification is the result of the comparison of one account.
type Verification struct {
	Account string `json:"account"`
	// Checked counts the ledger's posts that were compared, and Unchecked those that X's
	// timeline may not show: older than its end, of the last minute, or in a community.
	Checked   int `json:"checked"`
	Unchecked int `json:"unchecked"`
	// Read counts the posts that X showed.
	Read     int           `json:"read"`
	Findings []PostFinding `json:"findings"`
}

// PlanVerify plans a comparison, without calling X.
func (d *Control) PlanVerify(ctx context.Context, q VerifyQuery) (VerifyPlan, error) {
	var accounts []store.Account
	var err error
	if q.Account == "" {
		accounts, err = d.Ledger.Accounts(ctx)
	} else {
		var one store.Account
		one, err = d.Ledger.Account(ctx, q.Account)
		accounts = []store.Account{one}
	}
	if errors.Is(err, store.ErrNotFound) {
		return VerifyPlan{}, fmt.Errorf("account %s: %w", q.Account, err)
	}
	plan := VerifyPlan{Accounts: []VerifyAccount{}, since: q.Since}
	for _, a := range accounts {
		if err != nil {
			break
		}
		one := VerifyAccount{Account: a.Name, userID: a.XUserID}
		if one.ours, err = d.ledgerPosts(ctx, a.Name, q.Since); len(one.ours) == 0 {
			continue
		}
		one.Posts = min(len(one.ours), maxTimeline)
		plan.Accounts = append(plan.Accounts, one)
		plan.Posts += one.Posts
		plan.MaxPosts += maxTimeline
	}
	plan.CostUSD = float64(consumers.ReadCostMicros(plan.Posts)) / store.MicrosPerDollar
	plan.MaxCostUSD = float64(consumers.ReadCostMicros(plan.MaxPosts)) / store.MicrosPerDollar
	return plan, databaseError(err)
}

// ledgerPosts are the account's posts that were live since then.
func (d *Control) ledgerPosts(ctx context.Context, account string, since time.Time) (posts []ledgerPost, err error) {
	requests, err := d.Ledger.ListRequests(ctx, store.Filter{Account: account, Limit: maxListed})
	if err != nil {
		return nil, err
	}
	for _, r := range requests {
		request, err := jetpost.Decode(r.Account, r.Body)
		for _, p := range r.Posts {
			if p.State != jetpost.PostPosted || p.SentAt.Before(since) {
				continue
			}
			one := ledgerPost{key: r.Key, record: p, read: err == nil}
			if one.read {
				one.post = request.Posts[p.Index]
			}
			posts = append(posts, one)
		}
	}
	return posts, nil
}

// Verify reads the account's timeline and compares the ledger with it.
func (d *Control) Verify(ctx context.Context, plan VerifyPlan, account VerifyAccount) (Verification, error) {
	token, err := d.Ledger.Token(ctx, account.Account)
	if err != nil {
		return Verification{}, databaseError(err)
	}
	client := xapi.New(token.Access.Reveal(), xapi.WithBaseURL(cmp.Or(d.x.URL, xapi.DefaultBaseURL)), xapi.WithHTTPClient(&http.Client{Transport: xapi.NewTransport()}))
	line, err := readTimeline(ctx, client, account.userID, plan.since)
	if err != nil {
		return Verification{}, &HintError{
			Err:  fmt.Errorf("read the posts of account %s on X: %w", account.Account, err),
			Help: "see what X says; where it is the token: jetpost refresh " + account.Account + " --force",
		}
	}
	line.young = time.Now().Add(-consumers.Scale{Minute: d.x.Minute}.Of(timelineLag))
	ids := make([]string, len(line.posts))
	for i, p := range line.posts {
		ids[i] = p.ID
	}
	owned, err := d.Ledger.Owned(ctx, ids)
	if err != nil {
		return Verification{}, databaseError(err)
	}
	return compare(account.Account, account.ours, line, owned), nil
}

// timeline is what X has shown of an account.
type timeline struct {
	posts  []xapi.UserPost // the newest first
	whole  bool            // it ends where it was asked to
	partly bool            // X left something out
	// young is since when a post may not be shown yet.
	young time.Time
}

func readTimeline(ctx context.Context, client *xapi.Client, userID string, since time.Time) (line timeline, err error) {
	query := xapi.UserPostsQuery{StartTime: since, MaxResults: timelinePage, EditHistory: true}
	for len(line.posts) < maxTimeline {
		page, err := client.UserPosts(ctx, userID, query)
		if err != nil {
			return line, err
		}
		line.posts = append(line.posts, page.Posts...)
		line.partly = line.partly || page.Incomplete
		if query.PaginationToken = page.NextToken; page.NextToken == "" {
			break
		}
	}
	line.whole = len(line.posts) < maxTimeline
	return line, nil
}

// tells tells whether the timeline would show such a post.
func (l timeline) tells(p ledgerPost) bool {
	reaches := l.whole || len(l.posts) > 0 && !older(p.record.PostID, l.posts[len(l.posts)-1].ID)
	return reaches && !l.partly && p.read && p.post.CommunityID == "" && p.record.SentAt.Before(l.young)
}

// older compares ids of posts, which are numbers that grow with time.
func older(id, than string) bool {
	return cmp.Or(cmp.Compare(len(id), len(than)), cmp.Compare(id, than)) < 0
}

// compare finds how ledger and timeline differ. Of those posts on X, owned are the
// ledger's, also of times that are not compared.
func compare(account string, ours []ledgerPost, line timeline, owned []string) Verification {
	v := Verification{Account: account, Read: len(line.posts), Findings: []PostFinding{}}
	shown := map[string]xapi.UserPost{} // by all their ids
	for _, p := range line.posts {
		shown[p.ID] = p
		for _, id := range p.EarlierIDs {
			shown[id] = p
		}
	}
	explained := map[string]bool{}
	for _, id := range owned {
		explained[id] = true
	}
	for _, p := range ours {
		on, there := shown[p.record.PostID]
		deleted := !p.record.DeletedAt.IsZero()
		if there {
			explained[on.ID] = true
		}
		switch {
		case !there && !deleted && !line.tells(p):
			v.Unchecked++
			continue
		case !there && !deleted:
			v.find(PostMissing, &p, xapi.UserPost{ID: p.record.PostID, Text: p.post.Text})
		case there && deleted && p.record.DeletedAt.Before(line.young):
			v.find(PostUndeleted, &p, on)
		case there && !deleted && p.read && (on.ID != p.record.PostID || !consumers.EqualText(p.record, p.post, on)):
			v.find(PostChanged, &p, on)
		}
		v.Checked++
	}
	twins := map[string]string{} // our post of a doubled one
	for _, on := range slices.Backward(line.posts) {
		if explained[on.ID] {
			continue
		}
		explained[on.ID] = true // X may show it on two pages
		on.InReplyToPostID = cmp.Or(twins[on.InReplyToPostID], on.InReplyToPostID)
		twin := slices.IndexFunc(ours, func(p ledgerPost) bool {
			return p.read && p.record.DeletedAt.IsZero() && consumers.SamePost(p.record, p.post, on)
		})
		if twin >= 0 {
			twins[on.ID] = ours[twin].record.PostID
			v.find(PostDoubled, &ours[twin], on)
			continue
		}
		v.find(PostForeign, nil, on)
	}
	return v
}

func (v *Verification) find(kind Deviation, ours *ledgerPost, on xapi.UserPost) {
	f := PostFinding{Kind: kind, PostID: on.ID, URL: jetpost.PostURL(on.ID), Text: on.ExpandedText()}
	if ours != nil {
		f.ID, f.Index = ours.key.ID, &ours.record.Index
	}
	v.Findings = append(v.Findings, f)
}

// Count counts the findings of a kind.
func (v Verification) Count(kind Deviation) (n int) {
	for _, f := range v.Findings {
		if f.Kind == kind {
			n++
		}
	}
	return n
}

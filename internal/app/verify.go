package app

import (
	"cmp"
	"context"
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

// verifier compares the posts of accounts with their timelines on X.
type verifier struct {
	ledger store.Store
	x      XConfig
}

// ledgerPost is a post in the ledger, live or deleted.
type ledgerPost struct {
	key    store.Key
	record store.PostRecord
	post   jetpost.Post // none where only a newer jetpost can read its request
	read   bool
}

// verify compares an account's posts that were sent since a time, or all that X shows,
// with its timeline. In a dry run it does not call X.
func (v verifier) verify(ctx context.Context, account store.Account, in jetpost.AccountVerify) (jetpost.Verification, error) {
	out := jetpost.Verification{Account: account.Name, DryRun: in.DryRun, Findings: []jetpost.PostFinding{}}
	ours, err := v.ledgerPosts(ctx, account.Name, in.Since)
	if err != nil || len(ours) == 0 {
		return out, databaseError(err)
	}
	out.Posts, out.MaxPosts = min(len(ours), maxTimeline), maxTimeline
	out.CostEstimateUSD = float64(consumers.ReadCostMicros(out.Posts)) / store.MicrosPerDollar
	out.MaxCostUSD = float64(consumers.ReadCostMicros(out.MaxPosts)) / store.MicrosPerDollar
	if in.DryRun {
		return out, nil
	}
	line, owned, err := v.line(ctx, account, in.Since)
	if err != nil {
		return out, err
	}
	found := compare(account.Name, ours, line, owned)
	out.Checked, out.Unchecked, out.Read, out.Findings = found.Checked, found.Unchecked, found.Read, found.Findings
	return out, nil
}

// line reads the account's timeline, and which of its posts are the ledger's.
func (v verifier) line(ctx context.Context, account store.Account, since time.Time) (timeline, []string, error) {
	token, err := v.ledger.Token(ctx, account.Name)
	if err != nil {
		return timeline{}, nil, databaseError(err)
	}
	client := xapi.New(token.Access.Reveal(), xapi.WithBaseURL(cmp.Or(v.x.URL, xapi.DefaultBaseURL)), xapi.WithHTTPClient(&http.Client{Transport: xapi.NewTransport()}))
	line, err := readTimeline(ctx, client, account.XUserID, since)
	if err != nil {
		return timeline{}, nil, &HintError{
			Err:  fmt.Errorf("read the posts of account %s on X: %w", account.Name, err),
			Help: "see what X says; where it is the token: jetpost refresh " + account.Name + " --force",
		}
	}
	line.young = time.Now().Add(-consumers.Scale{Minute: v.x.Minute}.Of(timelineLag))
	ids := make([]string, len(line.posts))
	for i, p := range line.posts {
		ids[i] = p.ID
	}
	owned, err := v.ledger.Owned(ctx, ids)
	return line, owned, databaseError(err)
}

// ledgerPosts are the account's posts that were live since then.
func (v verifier) ledgerPosts(ctx context.Context, account string, since time.Time) (posts []ledgerPost, err error) {
	requests, err := v.ledger.ListRequests(ctx, store.Filter{Account: account, Limit: maxListed})
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
func compare(account string, ours []ledgerPost, line timeline, owned []string) jetpost.Verification {
	v := jetpost.Verification{Account: account, Read: len(line.posts), Findings: []jetpost.PostFinding{}}
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
			find(&v, jetpost.PostMissing, &p, xapi.UserPost{ID: p.record.PostID, Text: p.post.Text})
		case there && deleted && p.record.DeletedAt.Before(line.young):
			find(&v, jetpost.PostUndeleted, &p, on)
		case there && !deleted && p.read && (on.ID != p.record.PostID || !consumers.EqualText(p.record, p.post, on)):
			find(&v, jetpost.PostChanged, &p, on)
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
			find(&v, jetpost.PostDoubled, &ours[twin], on)
			continue
		}
		find(&v, jetpost.PostForeign, nil, on)
	}
	return v
}

// find adds a finding.
func find(v *jetpost.Verification, kind jetpost.Deviation, ours *ledgerPost, on xapi.UserPost) {
	f := jetpost.PostFinding{Kind: kind, PostID: on.ID, URL: jetpost.PostURL(on.ID), Text: on.ExpandedText()}
	if ours != nil {
		f.ID, f.Index = ours.key.ID, &ours.record.Index
	}
	v.Findings = append(v.Findings, f)
}

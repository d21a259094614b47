package consumers

import (
	"fmt"
	"strconv"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/tweettext"
)

// SameText says how to handle a request with a text that another account posts within a
// day, which X forbids.
type SameText string

const (
	SameTextAllow  SameText = "allow"
	SameTextWarn   SameText = "warn"   // a log message; "" means this
	SameTextRefuse SameText = "refuse" // it fails before anything is sent
)

// Rules are the rules of X that the contract cannot check: they need X's weighted count, or
// depend on the app. The zero value is for a self-serve app.
type Rules struct {
	// Enterprise is true for an Enterprise app, which may quote posts and use more than
	// one cashtag in a post.
	Enterprise bool
	SameText   SameText
}

// Check returns a *jetpost.InvalidError if X refuses the request by its rules. Posts of more
// than 280 characters pass, because the account decides whether X accepts them.
func (r Rules) Check(request jetpost.Request) error {
	var problems []jetpost.Problem
	for i, p := range request.Posts {
		refuse := func(field, format string, args ...any) {
			problems = append(problems, jetpost.Problem{
				Pointer: "/posts/" + strconv.Itoa(i) + "/" + field, Message: fmt.Sprintf(format, args...),
			})
		}
		m := tweettext.Measure(p.Text)
		if m.Weight > tweettext.MaxLongWeight {
			refuse("text", "weighs %d as X counts, at most %d are allowed", m.Weight, tweettext.MaxLongWeight)
		}
		if m.Cashtags > tweettext.MaxCashtags && !r.Enterprise {
			refuse("text", "has %d cashtags, such as $TWTR; X allows %d in a post", m.Cashtags, tweettext.MaxCashtags)
		}
		if p.QuotePostID != "" && !r.Enterprise {
			refuse("quote_post_id", "is for Enterprise apps, X says; where yours is one, set JETPOST_X_TIER=enterprise")
		}
	}
	if len(problems) == 0 {
		return nil
	}
	return &jetpost.InvalidError{Account: request.Account, ID: request.ID, Problems: problems}
}

// OwnObjects returns a *jetpost.InvalidError if a request names a file that was put there for
// another account. It is asked before a request is accepted: an account that is renamed later
// keeps its requests.
func OwnObjects(request jetpost.Request) error {
	var problems []jetpost.Problem
	for i, p := range request.Posts {
		for n, m := range p.Media {
			if owner := jetpost.ObjectOwner(m.Object); owner != "" && owner != request.Account {
				problems = append(problems, jetpost.Problem{
					Pointer: fmt.Sprintf("/posts/%d/media/%d/object", i, n), Message: "was put there for another account",
				})
			}
		}
	}
	if len(problems) == 0 {
		return nil
	}
	return &jetpost.InvalidError{Account: request.Account, ID: request.ID, Problems: problems}
}

// X's pay-per-use prices, in millionths of a US dollar, as of 2026-04-20:
// https://docs.x.com/x-api/getting-started/pricing. Uploads are free.
const (
	pricePost    = 15_000
	pricePostURL = 200_000 // for a post with a link; a bare host is a link, too
	priceAltText = 5_000
	priceRead    = 5_000 // for each post; a fifth if its account owns the app
)

// CostMicros estimates what X charges for a post, in millionths of a US dollar.
// X charges only for calls that succeed.
func CostMicros(p jetpost.Post) int64 {
	cost := int64(pricePost)
	if len(tweettext.URLs(p.Text)) > 0 {
		cost = pricePostURL
	}
	for _, m := range p.Media {
		if m.Alt != "" {
			cost += priceAltText
		}
	}
	return cost
}

// ReadCostMicros estimates what X charges for reading posts, in millionths of a US dollar.
func ReadCostMicros(posts int) int64 { return int64(posts) * priceRead }

// acceptance is the form in which the ledger accepts a request.
func (r Rules) acceptance(request jetpost.Request, body []byte) store.Acceptance {
	in := store.Acceptance{Request: request, Body: body, Digest: request.Digest(), RefuseSameText: r.SameText == SameTextRefuse,
		FindSameText: r.SameText == SameTextWarn || r.SameText == ""}
	for _, p := range request.Posts {
		in.CostMicros += CostMicros(p)
	}
	return in
}

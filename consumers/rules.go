package consumers

import (
	"fmt"
	"strconv"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/tweettext"
)

// SameText says what becomes of a request with a text that another account posts
// within a day, which X forbids.
type SameText string

const (
	SameTextAllow  SameText = "allow"
	SameTextWarn   SameText = "warn"   // a line in the log; "" means this
	SameTextRefuse SameText = "refuse" // it fails before anything is sent
)

// Rules are those of X that the contract alone cannot check: they need a count by
// weight, or depend on the app. The zero value is for a self-serve app.
type Rules struct {
	// Enterprise apps may quote, and have more than one cashtag in a post.
	Enterprise bool
	SameText   SameText
}

// Check tells what X would refuse, or nil. Posts of more than 280 pass: whether X
// takes them depends on the account. It fails with *jetpost.InvalidError.
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

// X's prices of pay-per-use, in millionths of a US dollar, as of 2026-04-20:
// https://docs.x.com/x-api/getting-started/pricing. Uploads have none.
const (
	pricePost    = 15_000
	pricePostURL = 200_000 // of a post with a link, bare hosts among them
	priceAltText = 5_000
	priceRead    = 5_000 // of a post; a fifth where its account owns the app
)

// CostMicros estimates what X charges for a post, in millionths of a US dollar.
// Only what is done is charged.
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

// ReadCostMicros estimates what X charges for showing posts, in millionths of a US dollar.
func ReadCostMicros(posts int) int64 { return int64(posts) * priceRead }

// acceptance is a request as the ledger takes it.
func (r Rules) acceptance(request jetpost.Request, body []byte) store.Acceptance {
	in := store.Acceptance{Request: request, Body: body, Digest: request.Digest(), RefuseSameText: r.SameText == SameTextRefuse,
		FindSameText: r.SameText == SameTextWarn || r.SameText == ""}
	for _, p := range request.Posts {
		in.CostMicros += CostMicros(p)
	}
	return in
}

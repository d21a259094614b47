package jetpost_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jetpost/jetpost"
)

// TestAPISubjects: no subject of an operation is another's, whatever the account is
// called, and the account is the last token.
func TestAPISubjects(t *testing.T) {
	t.Parallel()
	staging, err := jetpost.NewNames("staging")
	if err != nil {
		t.Fatal(err)
	}
	var plain jetpost.Names
	seen := map[string]jetpost.Operation{}
	for _, o := range jetpost.Operations() {
		bare, one := plain.API(o.Operation, ""), plain.API(o.Operation, "acme")
		if bare != "jetpost.api.v1."+string(o.Operation) || one != bare+".acme" {
			t.Errorf("%s: got %s and %s", o.Operation, bare, one)
		}
		if got := staging.API(o.Operation, "acme"); got != "staging."+one {
			t.Errorf("with a prefix: got %s", got)
		}
		if other, there := seen[bare]; there {
			t.Errorf("%s and %s share a subject", o.Operation, other)
		}
		seen[bare] = o.Operation
		if len(strings.Split(bare, ".")) != 5 {
			t.Errorf("%s: an account's token could be taken for a part of the name", bare)
		}
	}
	if plain.Service() != "jetpost" || staging.Service() != "staging_jetpost" {
		t.Errorf("got services %s and %s", plain.Service(), staging.Service())
	}
}

func TestDecodeCall(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		body string
		want []string // pointers of the mistakes
	}{
		{`{"id":"a","operation_id":"b"}`, nil},
		{``, []string{"/id"}},
		{`{}`, []string{"/id"}},
		{`[]`, []string{""}},
		{`{"id":"a b"}`, []string{"/id"}},
		{`{"id":"a","operation_id":"a/b"}`, []string{"/operation_id"}},
		{`{"id":"a","id":"b"}`, []string{"/id"}},
		{`{"id":"a","dryrun":true}`, []string{"/dryrun"}},
		{`{"id":"a","dry_run":null}`, []string{"/dry_run"}},
		{`{"id":1}`, []string{"/id"}},
	} {
		call, err := jetpost.DecodeCall[jetpost.RequestUnpublish]([]byte(test.body))
		var invalid *jetpost.InvalidError
		var got []string
		if errors.As(err, &invalid) {
			for _, p := range invalid.Problems {
				got = append(got, p.Pointer)
			}
		}
		if (err == nil) != (test.want == nil) || !slices.Equal(got, test.want) {
			t.Errorf("%s: got mistakes at %q (%v), want %q", test.body, got, err, test.want)
		}
		if err == nil && call.ID != "a" {
			t.Errorf("%s: got %+v", test.body, call)
		}
	}
	page, err := jetpost.DecodeCall[jetpost.RequestList]([]byte(`{"state":"held","code":"posting_limit","limit":5}`))
	if err != nil || page.State != jetpost.StateHeld || page.Code != jetpost.CodePostingLimit || page.Limit != 5 {
		t.Errorf("got %+v, %v", page, err)
	}
	if _, err := jetpost.DecodeCall[jetpost.RequestList]([]byte(`{"limit":1001}`)); err == nil {
		t.Error("a page larger than the largest was taken")
	}
}

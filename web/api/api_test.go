package api

import (
	"net/http"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/xspectest"
)

// TestOpenAPI: the document that is served is a valid one, and has each operation that a
// token can allow.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	got, err := xspectest.CheckDocument(t.Context(), openAPI)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, o := range jetpost.Operations() {
		if o.Operation.Verb() == "" {
			continue
		}
		path := "POST " + Path + string(o.Operation)
		if o.Account != jetpost.OfOne {
			want = append(want, path)
		}
		if o.Account != jetpost.OfNone {
			want = append(want, path+"/{account}")
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("paths (-operations +document):\n%s", diff)
	}
}

// TestStatus: each error has a status of its own kind, and only a fault of jetpost is 500.
func TestStatus(t *testing.T) {
	t.Parallel()
	for _, code := range jetpost.ErrorCodes() {
		status := Status(code)
		if (status == http.StatusInternalServerError) != (code == jetpost.ErrInternal) || status < 400 {
			t.Errorf("%s has status %d", code, status)
		}
	}
}

package xapi_test

import (
	"bytes"
	"fmt"
	"image"
	"image/gif"
	"image/png"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost/internal/xspectest"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// TestSpecification holds every request of the client, and every answer of the
// simulator, to X's own schemas and lists of values.
func TestSpecification(t *testing.T) {
	t.Parallel()
	x := &xsim.Server{Strict: true, MediaProcessing: -1}
	grant, err := x.AddAccount(xsim.NewAccount{Handle: "acme", SubscriptionType: xsim.SubscriptionPremium})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := xspectest.New("xsim/openapi.json", x)
	if err != nil {
		t.Fatal(err)
	}
	client := xapi.New(grant.AccessToken, xapi.WithHTTPClient(&http.Client{Transport: spec}))
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	var still, moving bytes.Buffer
	must(png.Encode(&still, image.NewGray(image.Rect(0, 0, 2, 2))))
	must(gif.Encode(&moving, image.NewGray(image.Rect(0, 0, 2, 2)), nil))
	picture, err := client.UploadMedia(ctx, &still, int64(still.Len()), "image/png")
	must(err)
	must(client.SetAltText(ctx, picture.ID, "points"))
	film, err := client.UploadMedia(ctx, &moving, int64(moving.Len()), "image/gif")
	must(err)
	_, err = client.MediaStatus(ctx, film.ID)
	must(err)
	done, err := client.PostThread(ctx, []xapi.Post{
		{Text: "one & https://example.com", MediaIDs: []string{picture.ID}, ReplySettings: "following", MadeWithAI: true},
		{Text: strings.Repeat("long ", 100), MediaIDs: []string{film.ID}},
		{Text: "a poll", Poll: &xapi.Poll{Options: []string{"a", "b"}, DurationMinutes: 5}},
	}, xapi.ThreadOptions{})
	must(err)
	_, err = client.Me(ctx)
	must(err)
	now := time.Now()
	page, err := client.UserPosts(ctx, grant.ID, xapi.UserPostsQuery{StartTime: now.Add(-time.Hour), EndTime: now.Add(time.Hour), MaxResults: 5, SinceID: "1", UntilID: "9000000000000000000"})
	must(err)
	if len(page.Posts) != len(done) || page.Posts[0].InReplyToPostID != done[1].ID {
		t.Errorf("the timeline is %+v", page)
	}
	for range 3 {
		_, err := client.PostThread(ctx, []xapi.Post{{Text: fmt.Sprint("more ", len(x.Posts("")))}}, xapi.ThreadOptions{})
		must(err)
	}
	page, err = client.UserPosts(ctx, grant.ID, xapi.UserPostsQuery{MaxResults: 5})
	must(err)
	page, err = client.UserPosts(ctx, grant.ID, xapi.UserPostsQuery{MaxResults: 5, PaginationToken: page.NextToken})
	must(err)
	if len(page.Posts) != 1 || page.NextToken != "" {
		t.Errorf("the second page is %+v", page)
	}
	_, err = client.UserPosts(ctx, grant.ID, xapi.UserPostsQuery{EditHistory: true})
	must(err)
	for range 2 { // there, and gone already
		must(client.DeletePost(ctx, done[2].ID))
	}
	for _, refused := range []xapi.Post{{Text: "one & https://example.com"}, {Text: "r", InReplyToPostID: "1"}, {Text: "m", MediaIDs: []string{"1"}}, {}} {
		if _, err := client.CreatePost(ctx, refused); err == nil {
			t.Errorf("X takes %+v", refused)
		}
	}
	for _, v := range spec.Violations() {
		if !strings.Contains(v, `"text":""`) {
			t.Error(v)
		}
	}
	for _, v := range x.Violations()[:max(0, len(x.Violations())-1)] { // the empty post
		t.Error(v)
	}
	seen := spec.Seen()
	for _, operation := range []string{"createPosts", "deletePosts", "getUsersMe", "getUsersPosts", "mediaUpload", "initializeMediaUpload", "appendMediaUpload", "finalizeMediaUpload", "getMediaUploadStatus", "createMediaMetadata"} {
		if seen[operation] == 0 {
			t.Errorf("%s was not held to the specification: %v", operation, seen)
		}
	}
}

package xapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"net/http/httptest"
	"time"

	"golang.org/x/oauth2"

	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// simulated is an X with one account, to which calls are free.
func simulated() (server *httptest.Server, grant xsim.Grant) {
	x := &xsim.Server{}
	grant, err := x.AddAccount(xsim.NewAccount{Handle: "acme"})
	if err != nil {
		panic(err)
	}
	return httptest.NewServer(x), grant
}

// A post, the window that it was counted in, and a wait where nothing is left of it.
func ExampleClient_CreatePost() {
	server, grant := simulated()
	defer server.Close()
	client := xapi.New(grant.AccessToken, xapi.WithBaseURL(server.URL)) // without a base URL: X itself

	created, err := client.CreatePost(context.Background(), xapi.Post{Text: "Hello"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("posted:", created.Text)
	for _, w := range created.Windows {
		fmt.Printf("%s: %d of %d left\n", w.Kind, w.Remaining, w.Limit)
	}
	if w, known := client.RateLimit(xapi.EndpointCreatePost); known && client.RateLimited(xapi.EndpointCreatePost) {
		time.Sleep(time.Until(w.Reset))
	}
	// Output:
	// posted: Hello
	// 15min: 99 of 100 left
	// app_24h: 9999 of 10000 left
}

// A thread is posted one post at a time. What must survive a crash is committed
// before and after each of them.
func ExampleClient_PostThread() {
	server, grant := simulated()
	defer server.Close()
	client := xapi.New(grant.AccessToken, xapi.WithBaseURL(server.URL))
	ctx := context.Background()

	var picture bytes.Buffer
	if err := png.Encode(&picture, image.NewGray(image.Rect(0, 0, 2, 2))); err != nil {
		fmt.Println(err)
		return
	}
	media, err := client.UploadMedia(ctx, &picture, int64(picture.Len()), "image/png")
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := client.SetAltText(ctx, media.ID, "Four grey points"); err != nil {
		fmt.Println(err)
	}
	posts := []xapi.Post{{Text: "Hello"}, {Text: "A picture", MediaIDs: []string{media.ID}}}
	done, err := client.PostThread(ctx, posts, xapi.ThreadOptions{
		Before: func(_ context.Context, i int, _ *xapi.Post) (time.Time, error) {
			fmt.Println("sending", i)
			return time.Now().Add(time.Minute), nil // nothing of it leaves later
		},
		After: func(_ context.Context, i int, created xapi.Created) error {
			fmt.Println("posted", i)
			return nil
		},
	})
	fmt.Println(len(done), "posts:", err)
	// Output:
	// sending 0
	// posted 0
	// sending 1
	// posted 1
	// 2 posts: <nil>
}

// Any token will do, such as one that x/oauth2 keeps fresh. Refresh tokens are single
// use, so that what an exchange brings must be stored before it is used.
func ExampleNew_oauth2() {
	server, grant := simulated()
	defer server.Close()
	conf := oauth2.Config{ClientID: "my app", Endpoint: oauth2.Endpoint{TokenURL: server.URL + "/2/oauth2/token", AuthStyle: oauth2.AuthStyleInParams}}
	ctx := context.Background()

	token, err := conf.TokenSource(ctx, &oauth2.Token{RefreshToken: grant.RefreshToken}).Token()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("another refresh token:", token.RefreshToken != grant.RefreshToken)
	user, err := xapi.New(token.AccessToken, xapi.WithBaseURL(server.URL)).Me(ctx)
	fmt.Println(user.Username, err)
	// Output:
	// another refresh token: true
	// acme <nil>
}

// The type of an error says what is known about the world, and the *APIError in it
// what X said.
func ExampleAPIError() {
	server, grant := simulated()
	defer server.Close()
	client := xapi.New(grant.AccessToken, xapi.WithBaseURL(server.URL))
	ctx := context.Background()

	_, err := client.CreatePost(ctx, xapi.Post{Text: "A reply", InReplyToPostID: "1"})
	var ambiguous *xapi.AmbiguousError
	var limit *xapi.RateLimitError
	var refused *xapi.RefusedError
	switch {
	case errors.As(err, &ambiguous):
		fmt.Println("it may be live: look before sending it again")
	case errors.As(err, &limit):
		fmt.Println("closed until", limit.Until)
	case errors.As(err, &refused):
		fmt.Println("never:", refused.Kind)
	}
	var answer *xapi.APIError
	if errors.As(err, &answer) {
		fmt.Println(answer.Status, answer.Words(), len(answer.Windows) > 0)
	}
	// Output:
	// never: parent_gone
	// 403 You attempted to reply to a Tweet that is deleted or not visible to you. true
}

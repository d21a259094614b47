package xapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/jetpost/jetpost/xapi"
)

// A thread is posted one post at a time, each as a reply to the one before it. What must
// survive a crash is committed before and after each of them.
func ExampleClient_CreatePost() {
	last := 1000
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last++
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintf(w, `{"data":{"id":"%d","text":""}}`, last)
	}))
	defer server.Close()

	transport := xapi.NewTransport()
	defer transport.CloseIdleConnections()
	client := xapi.New("access token",
		xapi.WithBaseURL(server.URL),
		xapi.WithHTTPClient(&http.Client{Transport: transport}))

	var parent string
	for i, text := range []string{"Hello", "second post of the thread"} {
		fmt.Println("sending", i) // the intent, with the latest moment at which it may be sent
		ctx := xapi.WithNotAfter(context.Background(), time.Now().Add(time.Minute))
		created, err := client.CreatePost(ctx, xapi.Post{Text: text, InReplyToPostID: parent})
		var ambiguous *xapi.AmbiguousError
		if errors.As(err, &ambiguous) {
			fmt.Println("look at X before sending again")
		}
		if err != nil {
			return
		}
		fmt.Println("posted", i, "as", created.ID)
		parent = created.ID
	}
	// Output:
	// sending 0
	// posted 0 as 1001
	// sending 1
	// posted 1 as 1002
}

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

// A thread is posted one post at a time. What must survive a crash is committed
// before and after each of them.
func ExampleClient_PostThread() {
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

	posts := []xapi.Post{{Text: "Hello"}, {Text: "second post of the thread"}}
	_, err := client.PostThread(context.Background(), posts, xapi.ThreadOptions{
		Before: func(_ context.Context, i int, _ *xapi.Post) (time.Time, error) {
			fmt.Println("sending", i)
			return time.Now().Add(time.Minute), nil
		},
		After: func(_ context.Context, i int, created xapi.Created) error {
			fmt.Println("posted", i, "as", created.ID)
			return nil
		},
	})
	var ambiguous *xapi.AmbiguousError
	if errors.As(err, &ambiguous) {
		fmt.Println("look at X before sending again")
	}
	// Output:
	// sending 0
	// posted 0 as 1001
	// sending 1
	// posted 1 as 1002
}

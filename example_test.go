package jetpost_test

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jetpost/jetpost"
)

// A thread of two posts, as it goes onto the wire.
func Example() {
	request := jetpost.Request{
		Account: "acme",
		ID:      "launch-1",
		Posts:   []jetpost.Post{{Text: "We are live!"}, {Text: "Here is how it works."}},
	}
	if err := request.Validate(); err != nil {
		fmt.Println(err)
		return
	}
	body, err := json.Marshal(request)
	if err != nil {
		fmt.Println(err)
		return
	}
	var names jetpost.Names
	fmt.Println(names.PublishRequest(request.Account))
	fmt.Println(string(body))
	// Output:
	// publish.request.acme
	// {"account":"acme","id":"launch-1","posts":[{"text":"We are live!"},{"text":"Here is how it works."}]}
}

// Decode reports every mistake with its place.
func ExampleDecode() {
	body := `{"id": "launch 1", "posts": [{"text": "Hello", "media": [{}]}], "publishAt": "2026-12-01T09:00:00Z"}`
	_, err := jetpost.Decode("acme", []byte(body))
	if invalid, ok := errors.AsType[*jetpost.InvalidError](err); ok {
		for _, p := range invalid.Problems {
			fmt.Println(p.Pointer, p.Message)
		}
	}
	// Output:
	// /publishAt unknown field "publishAt"; did you mean "publish_at"?
	// /id is "launch 1", want 1 to 128 of A-Z a-z 0-9 _ -
	// /posts/0/media/0 names 0 sources, want exactly one of url, data and object
}

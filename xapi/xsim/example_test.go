package xsim_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/jetpost/jetpost/xapi/xsim"
)

// A client posts, loses the answer, and tries again without checking first: the call
// log shows it.
func Example() {
	x := &xsim.Server{}
	server := httptest.NewServer(x)
	defer server.Close()

	ann, err := x.AddAccount(xsim.NewAccount{Handle: "ann"})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = x.SetFaults([]xsim.Fault{{Kind: xsim.FaultCut, After: true, Endpoint: xsim.EndpointCreatePost, Times: 1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 2 {
		req, _ := http.NewRequest("POST", server.URL+"/2/tweets", strings.NewReader(`{"text":"Hello"}`))
		req.Header.Set("Authorization", "Bearer "+ann.AccessToken)
		req.Header.Set("Content-Type", "application/json")
		resp, err := server.Client().Do(req)
		if err != nil {
			fmt.Println("no answer")
			continue
		}
		_ = resp.Body.Close()
		fmt.Println(resp.Status)
	}
	fmt.Println(len(x.Posts("ann")), "post,", x.Violations()[0].Kind)
	// Output:
	// no answer
	// 403 Forbidden
	// 1 post, duplicate_attempt
}

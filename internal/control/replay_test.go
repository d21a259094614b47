package control

import "testing"

// A job that came without an id gets the one that it was refused under, so
// that replaying it twice publishes it once.
func TestWithID(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, body, id, want string }{
		{"id of its own", `{"id":"mine","posts":[]}`, "m-1-2", `{"id":"mine","posts":[]}`},
		{"no JSON", `{`, "m-1-2", `{`},
		{"none known", `{"posts":[]}`, "", `{"posts":[]}`},
		{"without an id", `{"posts":[{"text":"a"}]}`, "m-1-2", `{"id":"m-1-2","posts":[{"text":"a"}]}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := string(withID([]byte(tc.body), tc.id)); got != tc.want {
				t.Errorf("withID(%s, %q) = %s, want %s", tc.body, tc.id, got, tc.want)
			}
		})
	}
}

package app

import (
	"strings"
	"testing"

	"github.com/jetpost/jetpost/xapi"
)

// What a consent lacks is told by the tokens as well as by the words beside them.
func TestMissingScopes(t *testing.T) {
	t.Parallel()
	all := strings.Join(xapi.ConsentScopes(), " ")
	for _, tc := range []struct {
		name string
		pair xapi.TokenPair
		want string
	}{
		{"all of them", xapi.TokenPair{RefreshToken: "R", Scope: all}, ""},
		{"more than that", xapi.TokenPair{RefreshToken: "R", Scope: "dm.read " + all}, ""},
		{"no refresh token", xapi.TokenPair{Scope: all}, "offline.access"},
		{"no word of scopes", xapi.TokenPair{RefreshToken: "R"}, ""},
		{"no word, no refresh token", xapi.TokenPair{}, "offline.access"},
		{"some", xapi.TokenPair{RefreshToken: "R", Scope: "offline.access users.read tweet.read"}, "tweet.write media.write"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := strings.Join(missingScopes(tc.pair), " "); got != tc.want {
				t.Errorf("missing %q, want %q", got, tc.want)
			}
		})
	}
	for _, scope := range xapi.ConsentScopes() {
		if scopePurpose(scope) == "to work" {
			t.Errorf("nobody says what %s is for", scope)
		}
	}
}

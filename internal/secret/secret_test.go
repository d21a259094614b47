package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/jetpost/jetpost/internal/secret"
)

func TestStringNeverPrints(t *testing.T) {
	t.Parallel()
	const value = "the-token-itself"
	holder := struct {
		Token secret.String
		Ptr   *secret.String
	}{Token: secret.New(value)}
	holder.Ptr = &holder.Token

	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+"\n", holder.Token)
		fmt.Fprintf(&out, verb+"\n", holder)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "token", holder.Token, "holder", holder)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", holder.Token, "holder", holder)
	if err := json.NewEncoder(&out).Encode(holder); err != nil {
		t.Fatal(err)
	}
	hex := fmt.Sprintf("%x", value)
	for _, leak := range []string{value, hex} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("a printed form shows the value:\n%s", out.String())
		}
	}
	if got := holder.Token.Reveal(); got != value {
		t.Errorf("Reveal() = %q, want %q", got, value)
	}
}

package secret

import (
	"fmt"
	"io"
	"log/slog"
)

// String is a value, such as a token or a key, whose every printed form is REDACTED.
// [String.Reveal] is the one way to its content, so that a search for Reveal finds
// every place that uses it.
type String struct{ value string }

const redacted = "REDACTED"

// New wraps a value.
func New(value string) String { return String{value: value} }

// Reveal returns the value.
func (s String) Reveal() string { return s.value }

// Empty reports whether there is no value.
func (s String) Empty() bool { return s.value == "" }

// None of the printed forms shows the value, whatever the verb.

func (String) String() string               { return redacted }
func (String) GoString() string             { return redacted }
func (String) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (String) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Format covers the verbs that would otherwise look into the struct.
func (String) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

package rules

import (
	"errors"
	"strings"
)

// Words is the stored form of a list of words. None has a space.
type Words[S ~string] struct{ Of *[]S }

// String is the stored form.
func (w Words[S]) String() string {
	all := make([]string, len(*w.Of))
	for i, word := range *w.Of {
		all[i] = string(word)
	}
	return strings.Join(all, " ")
}

// Scan implements sql.Scanner.
func (w Words[S]) Scan(value any) error {
	text, ok := value.(string)
	if !ok {
		return errors.New("words are no text")
	}
	*w.Of = nil
	for word := range strings.FieldsSeq(text) {
		*w.Of = append(*w.Of, S(word))
	}
	return nil
}

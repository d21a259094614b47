package tweettext_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jetpost/jetpost/xapi/tweettext"
)

func BenchmarkMeasure(b *testing.B) {
	for _, bb := range []struct{ name, text string }{
		{"ascii", strings.Repeat("Just some words, and. ", 12)},
		{"emoji", strings.Repeat("👩🏽‍🚒 und 🇩🇪 ", 14)},
		{"japanese", strings.Repeat("日本語の文です。", 17)},
		{"links", strings.Repeat("see http://example.com/a/b?c=d and example.org ", 4)},
		{"nfd", strings.Repeat("cafe\u0301 au lait ", 20)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(bb.text)))
			for b.Loop() {
				tweettext.Measure(bb.text)
			}
		})
	}
}

func BenchmarkSplit(b *testing.B) {
	text := strings.Repeat("A sentence of some words, and a link: example.com/path. ", 400)
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := tweettext.Split(text, tweettext.MaxWeight); err != nil {
			b.Fatal(err)
		}
	}
}

// hostile has what makes a careless search for links start over and over. Each
// is repeated to any length.
func hostile() map[string]string {
	return map[string]string{
		"accents":        "e\u0301",
		"brackets":       "a.com/(",
		"brackets only":  "(",
		"closed":         "a.com/(b)",
		"commas":         "a.com/,,,,",
		"dollars":        "$A",
		"dots":           ".",
		"emoji":          "👨‍",
		"ends":           "a.com_",
		"hosts":          "a.com ",
		"hyphens":        "-",
		"japanese":       "語a.com",
		"japanese names": "語.",
		"labels":         "a.",
		"long names":     "名前",
		"marks":          "q\u0323\u0301",
		"names":          "a.com.x.x.x.",
		"nested":         "a.com/(b(c",
		"protocols":      "http://",
		"queries":        "a.com?(",
		"refused":        "/a.com",
		"regions":        "🇦",
		"slugs":          "https://t.co/a/",
		"underscores":    "a_",
		"unknown":        "a.みん",
	}
}

// BenchmarkMeasureHostile shows growth: the time for a byte stays the same as
// the texts get longer.
func BenchmarkMeasureHostile(b *testing.B) {
	for name, piece := range hostile() {
		for _, size := range []int{1 << 12, 1 << 16} {
			text := strings.Repeat(piece, size/len(piece))
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					tweettext.Measure(text)
				}
			})
		}
	}
}

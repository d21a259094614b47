package tweettext

import "golang.org/x/text/unicode/norm"

// URLWork is how many characters the search for links reads each time.
func URLWork(text string) int {
	f := finder{text: norm.NFC.String(text), known: frozenList | rootZone}
	f.find()
	return f.looked
}

// SplitWork is how many bytes Split walks over and measures.
func SplitWork(text string, limit int) int {
	text = norm.NFC.String(text)
	c := cutter{text: text, urls: findURLs(text), limit: limit}
	for c.skipSpace(); c.at < len(text); {
		cut, err := c.next()
		if err != nil {
			break
		}
		c.at = cut.resume
	}
	return c.looked
}

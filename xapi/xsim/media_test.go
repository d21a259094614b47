package xsim_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/png"
	"mime/multipart"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

var pngBytes, gifBytes = func() ([]byte, []byte) {
	var p, g bytes.Buffer
	canvas := image.NewPaletted(image.Rect(0, 0, 3, 2), color.Palette{color.Black})
	if err := png.Encode(&p, canvas); err != nil {
		panic(err)
	}
	if err := gif.Encode(&g, canvas, nil); err != nil {
		panic(err)
	}
	return p.Bytes(), g.Bytes()
}()

// form is a multipart body of name and value pairs; media is sent as a file.
func form(pairs ...string) (contentType, body string) {
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i] != "media" {
			_ = w.WriteField(pairs[i], pairs[i+1])
			continue
		}
		part, _ := w.CreateFormFile(pairs[i], "blob")
		_, _ = part.Write([]byte(pairs[i+1]))
	}
	_ = w.Close()
	return w.FormDataContentType(), buf.String()
}

// upload uploads an image that must be accepted and returns its id.
func (b *testBundle) upload(g xsim.Grant, data []byte) string {
	b.Helper()
	kind, body := form("media", string(data), "media_category", "tweet_image")
	r := b.do(g, "POST", "/2/media/upload", kind, body)
	b.want(r, 200, "")
	return field(b.T, r.body, "data", "id")
}

func TestUpload(t *testing.T) {
	t.Parallel()
	b := setup(t)
	kind, body := form("media_category", "tweet_image", "media", string(pngBytes))
	asJSON := fmt.Sprintf(`{"media":%q,"media_category":"tweet_image"}`, base64.StdEncoding.EncodeToString(pngBytes))
	for _, r := range []result{b.do(b.grant, "POST", "/2/media/upload", kind, body), b.do(b.grant, "POST", "/2/media/upload", "application/json", asJSON)} {
		id := field(t, r.body, "data", "id")
		b.want(r, 200, fmt.Sprintf(`{"data":{"id":"%s","media_key":"3_%[1]s","size":%d,"expires_after_secs":86400,"image":{"w":3,"h":2,"image_type":"image/png"}}}`, id, len(pngBytes)))
	}
	media := b.x.Media("ann")
	if len(media) != 2 || media[0].SHA256 != media[1].SHA256 || media[0].ID == media[1].ID {
		t.Errorf("%+v", media)
	}
	b.wantViolations()
}

func TestUploadRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name      string
		pairs     []string
		malformed bool
	}{
		{"bad_category", []string{"media", string(pngBytes), "media_category", "image"}, true},
		{"empty", []string{"media", "", "media_category", "tweet_image"}, true},
		{"extra_field", []string{"media", string(pngBytes), "media_category", "tweet_image", "media_type", "image/png"}, true},
		{"no_category", []string{"media", string(pngBytes)}, true},
		{"not_an_image", []string{"media", "text", "media_category", "tweet_image"}, false},
		{"png_as_gif", []string{"media", string(pngBytes), "media_category", "tweet_gif"}, false},
		{"too_large", []string{"media", string(pngBytes) + strings.Repeat("x", 5<<20), "media_category", "tweet_image"}, false},
		{"twice", []string{"media", string(pngBytes), "media", string(pngBytes), "media_category", "tweet_image"}, true},
		{"video", []string{"media", string(pngBytes), "media_category", "tweet_video"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			kind, body := form(test.pairs...)
			b.want(b.do(b.grant, "POST", "/2/media/upload", kind, body), 400, "")
			if test.malformed {
				b.wantViolations("malformed_request")
			} else {
				b.wantViolations()
			}
		})
	}
	t.Run("edge", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		if r := b.do(b.grant, "POST", "/2/media/upload", "application/json", strings.Repeat("x", 24<<20+1)); r.status != 413 || r.body != "" {
			t.Errorf("%d %q, want an empty 413", r.status, r.body)
		}
	})
}

func TestPostMedia(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	refused := func(id string) string {
		return invalidRequest(`"media.media_ids":["`+id+`"]`, "Your media IDs are invalid.")
	}
	attach := func(id string) result {
		return b.create(b.grant, `{"text":"with","media":{"media_ids":["`+id+`"]}}`)
	}
	theirs, mine := b.upload(bob, pngBytes), b.upload(b.grant, pngBytes)
	b.want(attach(theirs), 400, refused(theirs))
	b.want(attach("12"), 400, refused("12"))

	kind, body := form("media", string(gifBytes), "media_category", "dm_gif")
	direct := field(t, b.do(b.grant, "POST", "/2/media/upload", kind, body).body, "data", "id")
	b.want(attach(direct), 400, refused(direct))
	kind, body = form("media", string(gifBytes), "media_category", "tweet_gif")
	moving := field(t, b.do(b.grant, "POST", "/2/media/upload", kind, body).body, "data", "id")
	b.want(attach(moving+`","`+mine), 400, "")

	b.want(attach(mine), 201, "")
	if got := b.x.Posts("ann")[0].MediaIDs; len(got) != 1 || got[0] != mine {
		t.Errorf("media ids: %v", got)
	}
	late := b.upload(b.grant, pngBytes)
	b.clock.pass(24 * time.Hour)
	b.grant = b.account(xsim.NewAccount{Handle: "ann"})
	b.want(attach(late), 400, refused(late))
	b.wantViolations()
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.upload(b.grant, pngBytes)
	describe := func(body string) result {
		return b.do(b.grant, "POST", "/2/media/metadata", "application/json", body)
	}
	b.want(describe(`{"id":"`+id+`","metadata":{"alt_text":{"text":"A cat"}}}`), 200, `{"data":{"associated_metadata":{"alt_text":{"text":"A cat"}},"id":"`+id+`"}}`)
	if got := b.x.Media("ann")[0].AltText; got != "A cat" {
		t.Errorf("alt text is %q", got)
	}
	b.want(describe(`{"id":"12","metadata":{"alt_text":{"text":"A cat"}}}`), 400, "")
	b.wantViolations()
	b.want(describe(`{"id":"`+id+`","metadata":{"alt_text":{"text":"`+strings.Repeat("a", 1001)+`"}}}`), 400, "")
	b.want(describe(`{"metadata":{}}`), 400, "")
	b.wantViolations("malformed_request", "malformed_request")
}

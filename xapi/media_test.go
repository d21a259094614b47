package xapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestUploadMedia(t *testing.T) {
	t.Parallel()

	image := bytes.Repeat([]byte{0xff, 0, '\n'}, 1000)
	for name, tc := range map[string]struct {
		body     string
		lifetime time.Duration
	}{
		"lifetime given":  {`{"data":{"id":"1","media_key":"3_1","expires_after_secs":60}}`, time.Minute},
		"lifetime absent": {`{"data":{"id":"1","media_key":"3_1"}}`, defaultMediaLifetime},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(w http.ResponseWriter, r *http.Request) {
				file, header, err := r.FormFile("media")
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(file)
				if err != nil || !bytes.Equal(got, image) || header.Header.Get("Content-Type") != "image/png" {
					t.Errorf("got %d bytes of %v, %v", len(got), header.Header, err)
				}
				if diff := cmp.Diff(map[string][]string{"media_category": {"tweet_image"}}, r.MultipartForm.Value); diff != "" {
					t.Error(diff)
				}
				_, _ = io.WriteString(w, tc.body)
			})
			start := time.Now()
			got, err := b.client.UploadMedia(t.Context(), bytes.NewReader(image), int64(len(image)), "image/png")
			if err != nil || got.ID != "1" || got.Key != "3_1" {
				t.Fatalf("got %+v, %v", got, err)
			}
			if got.ExpiresAt.Before(start.Add(tc.lifetime)) || got.ExpiresAt.After(time.Now().Add(tc.lifetime)) {
				t.Errorf("lives %v, want %v", got.ExpiresAt.Sub(start), tc.lifetime)
			}
		})
	}
}

func TestUploadMediaRefusedBeforeSending(t *testing.T) {
	t.Parallel()

	b := setup(t, reply(http.StatusOK, created))
	boom := errors.New("boom")
	for _, tc := range []struct {
		r    io.Reader
		size int64
		mime string
		want error
	}{
		{nil, MaxImageBytes + 1, "image/jpeg", ErrMediaTooLarge},
		{nil, MaxGIFBytes + 1, "image/gif", ErrMediaTooLarge},
		{nil, MaxVideoBytes + 1, "video/mp4", ErrMediaTooLarge},
		{nil, 1, "text/html", ErrMediaType},
		{nil, 1, "", ErrMediaType},
		{iotest.ErrReader(boom), 1, "image/jpeg", boom},
		{bytes.NewReader([]byte{1}), 2, "image/jpeg", io.ErrUnexpectedEOF},
	} {
		if _, err := b.client.UploadMedia(t.Context(), tc.r, tc.size, tc.mime); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.mime, err, tc.want)
		}
	}
	if b.calls.Load() != 0 {
		t.Error("something was sent")
	}
}

func TestUploadMediaDoubtful(t *testing.T) {
	t.Parallel()

	for _, status := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		b := setup(t, reply(status, `{"data":{}}`))
		_, err := b.client.UploadMedia(t.Context(), bytes.NewReader([]byte("x")), 1, "image/jpeg")
		wantAs[*AmbiguousError](t, err)
	}
}

func TestSetAltText(t *testing.T) {
	t.Parallel()

	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		var got any
		err := json.NewDecoder(r.Body).Decode(&got)
		want := map[string]any{"id": "1", "metadata": map[string]any{"alt_text": map[string]any{"text": "a cat"}}}
		if diff := cmp.Diff(want, got); diff != "" || err != nil || r.URL.Path != "/2/media/metadata" {
			t.Errorf("%v at %s: %s", err, r.URL.Path, diff)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	if err := b.client.SetAltText(t.Context(), "1", "a cat"); err != nil {
		t.Error(err)
	}
	failing := setup(t, reply(http.StatusServiceUnavailable, ""))
	wantAs[*UnavailableError](t, failing.client.SetAltText(t.Context(), "1", "a cat"))
}

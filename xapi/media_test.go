package xapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
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

// TestUploadSegments: each segment but the last is whole, and what X hears is the
// file.
func TestUploadSegments(t *testing.T) {
	t.Parallel()
	video := make([]byte, 2*segmentBytes+7)
	for i := range video {
		video[i] = byte(i / 1000)
	}
	var got []byte
	var steps []string
	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		switch step := path.Base(r.URL.Path); step {
		case "initialize":
			body, _ := io.ReadAll(r.Body)
			steps = append(steps, step+" "+string(body))
			_, _ = io.WriteString(w, `{"data":{"id":"1","media_key":"13_1","expires_after_secs":1295999}}`)
		case "append":
			file, _, err := r.FormFile("media")
			if err != nil {
				t.Error(err)
				return
			}
			part, _ := io.ReadAll(file)
			got = append(got, part...)
			steps = append(steps, fmt.Sprintf("%s %s %v %d", step, r.URL.Path, r.MultipartForm.Value, len(part)))
			w.WriteHeader(http.StatusNoContent)
		case "finalize":
			steps = append(steps, step+" "+r.URL.Path)
			_, _ = io.WriteString(w, `{"data":{"id":"1","media_key":"13_1","expires_after_secs":60,"processing_info":{"state":"pending","check_after_secs":3}}}`)
		default:
			steps = append(steps, r.Method+" "+r.URL.String())
			_, _ = io.WriteString(w, `{"data":{"id":"1","media_key":"13_1","processing_info":{"state":"succeeded"}}}`)
		}
	})
	start := time.Now()
	m, err := b.client.UploadMedia(t.Context(), bytes.NewReader(video), int64(len(video)), "video/mp4")
	if err != nil || m.ID != "1" || m.Key != "13_1" || m.CheckAfter != 3*time.Second {
		t.Fatalf("got %+v, %v", m, err)
	}
	if m.ExpiresAt.Before(start.Add(time.Minute)) || m.ExpiresAt.After(time.Now().Add(time.Minute)) {
		t.Errorf("lives %v", m.ExpiresAt.Sub(start))
	}
	if m, err := b.client.MediaStatus(t.Context(), "1"); err != nil || m.CheckAfter != 0 {
		t.Errorf("status: %+v, %v", m, err)
	}
	want := []string{
		`initialize {"media_category":"tweet_video","media_type":"video/mp4","total_bytes":2097159}`,
		"append /2/media/upload/1/append map[segment_index:[0]] 1048576",
		"append /2/media/upload/1/append map[segment_index:[1]] 1048576",
		"append /2/media/upload/1/append map[segment_index:[2]] 7",
		"finalize /2/media/upload/1/finalize",
		"GET /2/media/upload?command=STATUS&media_id=1",
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Error(diff)
	}
	if !bytes.Equal(got, video) {
		t.Error("X has other bytes")
	}
}

// TestGuarded: each call goes through the guard, or is not made.
func TestGuarded(t *testing.T) {
	t.Parallel()
	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		if path.Base(r.URL.Path) == "finalize" {
			t.Error("a refused call was made")
		}
		_, _ = io.WriteString(w, `{"data":{"id":"1"}}`)
	})
	refused := errors.New("refused")
	var asked []Endpoint
	guarded := b.client.Guarded(func(e Endpoint, do func() error) error {
		if asked = append(asked, e); len(asked) == 3 {
			return refused
		}
		return do()
	})
	_, err := guarded.UploadMedia(t.Context(), bytes.NewReader([]byte("video")), 5, "video/mp4")
	if !errors.Is(err, refused) {
		t.Errorf("error is %v", err)
	}
	if want := []Endpoint{EndpointInitializeMedia, EndpointAppendMedia, EndpointFinalizeMedia}; !slices.Equal(asked, want) {
		t.Errorf("asked of %v", asked)
	}
}

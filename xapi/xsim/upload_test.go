package xsim_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost/xapi/xsim"
)

const mp4Bytes = "\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp41 and what would be a film"

// initialize begins an upload that must be accepted and returns its id.
func (b *testBundle) initialize(g xsim.Grant, category, kind string, total int) string {
	b.Helper()
	r := b.do(g, "POST", "/2/media/upload/initialize", "application/json",
		fmt.Sprintf(`{"media_category":%q,"media_type":%q,"total_bytes":%d}`, category, kind, total))
	b.want(r, 200, "")
	return field(b.T, r.body, "data", "id")
}

func (b *testBundle) segment(g xsim.Grant, id string, index int, data string) result {
	b.Helper()
	kind, body := form("segment_index", strconv.Itoa(index), "media", data)
	return b.do(g, "POST", "/2/media/upload/"+id+"/append", kind, body)
}

func (b *testBundle) finalize(g xsim.Grant, id string) result {
	b.Helper()
	return b.do(g, "POST", "/2/media/upload/"+id+"/finalize", "", "")
}

func (b *testBundle) status(g xsim.Grant, id string) result {
	b.Helper()
	return b.do(g, "GET", "/2/media/upload?command=STATUS&media_id="+id, "", "")
}

// chunked uploads in two segments what must be accepted and returns its id.
func (b *testBundle) chunked(g xsim.Grant, category, kind, data string) string {
	b.Helper()
	id := b.initialize(g, category, kind, len(data))
	b.want(b.segment(g, id, 0, data[:20]), 200, "")
	b.want(b.segment(g, id, 1, data[20:]), 200, "")
	b.want(b.finalize(g, id), 200, "")
	return id
}

// attach posts a text of its own with the media.
func (b *testBundle) attach(g xsim.Grant, ids ...string) result {
	b.Helper()
	return b.create(g, fmt.Sprintf(`{"text":"with %s","media":{"media_ids":["%s"]}}`, strings.Join(ids, " "), strings.Join(ids, `","`)))
}

func (b *testBundle) wantInvalidMedia(r result, parameter, id string) {
	b.Helper()
	b.want(r, 400, invalidRequest(fmt.Sprintf(`"%s":["%s"]`, parameter, id), "Your media IDs are invalid."))
}

func TestChunkedVideo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	start := b.clock.now()
	r := b.do(b.grant, "POST", "/2/media/upload/initialize", "application/json",
		fmt.Sprintf(`{"media_category":"tweet_video","media_type":"video/mp4","total_bytes":%d,"shared":false,"additional_owners":["12"]}`, len(mp4Bytes)))
	id := field(t, r.body, "data", "id")
	b.want(r, 200, `{"data":{"id":"`+id+`","media_key":"7_`+id+`","expires_after_secs":1295999}}`)

	// The last first, one twice, one as JSON.
	appended := fmt.Sprintf(`{"data":{"expires_at":%d}}`, start.Add(1295999*time.Second).Unix())
	b.want(b.segment(b.grant, id, 2, mp4Bytes[20:]), 200, appended)
	b.want(b.segment(b.grant, id, 2, mp4Bytes[20:]), 200, appended)
	b.want(b.segment(b.grant, id, 0, mp4Bytes[:10]), 200, appended)
	b.want(b.do(b.grant, "POST", "/2/media/upload/"+id+"/append", "application/json",
		fmt.Sprintf(`{"segment_index":1,"media":%q}`, base64.StdEncoding.EncodeToString([]byte(mp4Bytes[10:20])))), 200, appended)

	want := xsim.Media{
		ID: id, MediaKey: "7_" + id, UserID: b.grant.ID, Category: "tweet_video", Size: len(mp4Bytes),
		ExpiresAt: start.Add(1295999 * time.Second), State: xsim.MediaUploading, Segments: 3,
	}
	wantCallLog := func() {
		t.Helper()
		if diff := cmp.Diff([]xsim.Media{want}, b.x.Media("ann")); diff != "" {
			t.Errorf("media (-want +got):\n%s", diff)
		}
	}
	wantCallLog()
	shown := func(expires int, processing string) string {
		return fmt.Sprintf(`{"data":{"id":"%s","media_key":"7_%[1]s","size":%d,"expires_after_secs":%d,"video":{"video_type":"video/mp4"},"processing_info":{%s}}}`,
			id, len(mp4Bytes), expires, processing)
	}
	b.want(b.finalize(b.grant, id), 200, shown(86400, `"state":"pending","check_after_secs":1`))
	want.Type, want.SHA256 = "video/mp4", fmt.Sprintf("%x", sha256.Sum256([]byte(mp4Bytes)))
	want.State, want.ExpiresAt = xsim.MediaPending, start.Add(24*time.Hour)
	wantCallLog()

	b.want(b.status(b.grant, id), 200, shown(86400, `"state":"pending","check_after_secs":1`))
	b.clock.pass(time.Second)
	b.want(b.status(b.grant, id), 200, shown(86399, `"state":"in_progress","check_after_secs":2,"progress_percent":33`))
	b.clock.pass(2 * time.Second)
	b.want(b.do(b.grant, "GET", "/2/media/upload?media_id="+id, "", ""), 200, shown(86397, `"state":"succeeded","progress_percent":100`))
	want.State, want.StatusAsked = xsim.MediaSucceeded, 3
	wantCallLog()

	r = b.attach(b.grant, id)
	b.want(r, 201, "")
	r = b.do(b.grant, "GET", "/2/tweets/"+field(t, r.body, "data", "id")+"?tweet.fields=entities,attachments", "", "")
	if !strings.Contains(r.body, `/video/1"`) || !strings.Contains(r.body, `"media_keys":["7_`+id+`"]`) {
		t.Errorf("the post is shown as %s", r.body)
	}
	b.wantViolations()
}

// What needs no processing says nothing about it.
func TestChunkedImage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.x.MediaTTL = time.Hour
	id := b.initialize(b.grant, "tweet_image", "image/png", len(pngBytes))
	for i := range pngBytes {
		b.want(b.segment(b.grant, id, i, string(pngBytes[i:i+1])), 200, "")
	}
	want := fmt.Sprintf(`{"data":{"id":"%s","media_key":"3_%[1]s","size":%d,"expires_after_secs":3600,"image":{"w":3,"h":2,"image_type":"image/png"}}}`, id, len(pngBytes))
	b.want(b.finalize(b.grant, id), 200, want)
	b.want(b.status(b.grant, id), 200, want)
	b.want(b.attach(b.grant, id), 201, "")

	// The same bytes in one shot are the same content.
	b.upload(b.grant, pngBytes)
	if media := b.x.Media("ann"); media[0].SHA256 != media[1].SHA256 || media[1].Segments != 0 || media[1].State != xsim.MediaSucceeded {
		t.Errorf("%+v", media)
	}
	b.clock.pass(time.Hour)
	b.wantInvalidMedia(b.status(b.grant, id), "media_id", id)
	b.wantViolations()
}

func TestMediaProcessing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		processing, passed time.Duration
		want               string
	}{
		{-1, 0, ``},
		{0, 2900 * time.Millisecond, `"state":"in_progress","check_after_secs":1,"progress_percent":96`},
		{0, 3 * time.Second, `"state":"succeeded","progress_percent":100`},
		{time.Hour, 0, `"state":"pending","check_after_secs":5`},
		{time.Hour, 30 * time.Minute, `"state":"in_progress","check_after_secs":5,"progress_percent":50`},
	} {
		t.Run(fmt.Sprintf("%v_of_%v", test.passed, test.processing), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.x.MediaProcessing = test.processing
			id := b.chunked(b.grant, "tweet_gif", "image/gif", string(gifBytes))
			b.clock.pass(test.passed)
			_, got, told := strings.Cut(b.status(b.grant, id).body, `,"processing_info":{`)
			if told != (test.want != "") || strings.TrimSuffix(got, "}}}") != test.want && told {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestInitializeRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, body string
		malformed  bool
	}{
		{"bad_category", `{"media_category":"video","media_type":"video/mp4","total_bytes":9}`, true},
		{"bad_owner", `{"media_category":"tweet_video","media_type":"video/mp4","total_bytes":9,"additional_owners":["ann"]}`, true},
		{"bad_type", `{"media_category":"tweet_video","media_type":"video/avi","total_bytes":9}`, true},
		{"empty", `{"media_category":"tweet_video","media_type":"video/mp4","total_bytes":0}`, false},
		{"extra_field", `{"media_category":"tweet_video","media_type":"video/mp4","total_bytes":9,"command":"INIT"}`, true},
		{"gif_as_video", `{"media_category":"tweet_video","media_type":"image/gif","total_bytes":9}`, false},
		{"large_gif", `{"media_category":"tweet_gif","media_type":"image/gif","total_bytes":15728641}`, false},
		{"large_image", `{"media_category":"tweet_image","media_type":"image/png","total_bytes":5242881}`, false},
		{"large_video", `{"media_category":"tweet_video","media_type":"video/mp4","total_bytes":8589934593}`, false},
		{"no_category", `{"media_type":"video/mp4","total_bytes":9}`, true},
		{"no_size", `{"media_category":"tweet_video","media_type":"video/mp4"}`, true},
		{"no_type", `{"media_category":"tweet_video","total_bytes":9}`, true},
		{"null", `{"media_category":"tweet_video","media_type":"video/mp4","total_bytes":9,"shared":null}`, true},
		{"size_as_text", `{"media_category":"tweet_video","media_type":"video/mp4","total_bytes":"9"}`, true},
		{"size_beyond_schema", `{"media_category":"tweet_video","media_type":"video/mp4","total_bytes":17179869185}`, true},
		{"subtitles", `{"media_category":"subtitles","media_type":"text/srt","total_bytes":9}`, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.want(b.do(b.grant, "POST", "/2/media/upload/initialize", "application/json", test.body), 400, "")
			b.wantMalformed(test.malformed)
		})
	}
	t.Run("largest", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.initialize(b.grant, "tweet_image", "image/pjpeg", 5<<20)
		b.initialize(b.grant, "tweet_gif", "image/gif", 15<<20)
		b.want(b.do(b.grant, "POST", "/2/media/upload/initialize", "application/json",
			`{"media_category":"amplify_video","media_type":"video/quicktime","total_bytes":8589934592}`), 200, "")
	})
	t.Run("multipart", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		kind, body := form("media_category", "tweet_video", "media_type", "video/mp4", "total_bytes", "9")
		b.want(b.do(b.grant, "POST", "/2/media/upload/initialize", kind, body), 400, "")
		b.wantMalformed(true)
	})
}

// wantMalformed says whether the refusal went into the call log as the client's fault.
func (b *testBundle) wantMalformed(malformed bool) {
	b.Helper()
	if malformed {
		b.wantViolations("malformed_request")
	} else {
		b.wantViolations()
	}
}

func TestAppendRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, id, kind, body string // id "" is an upload's that waits for nine bytes and has four in segment 0
		malformed            bool
	}{
		{name: "beyond_total", body: `{"segment_index":1,"media":"YWJjZGVm"}`},
		{name: "empty", body: `{"segment_index":1,"media":""}`, malformed: true},
		{name: "extra_field", body: `{"segment_index":1,"media":"YWJj","media_id":"1"}`, malformed: true},
		{name: "index_1000", body: `{"segment_index":1000,"media":"YWJj"}`, malformed: true},
		{name: "index_as_text", body: `{"segment_index":"1","media":"YWJj"}`, malformed: true},
		{name: "index_negative", body: `{"segment_index":-1,"media":"YWJj"}`, malformed: true},
		{name: "media_key", id: "7_12", body: `{"segment_index":1,"media":"YWJj"}`, malformed: true},
		{name: "no_base64", body: `{"segment_index":1,"media":"ab c"}`, malformed: true},
		{name: "no_index", body: `{"media":"YWJj"}`, malformed: true},
		{name: "no_media", body: `{"segment_index":1}`, malformed: true},
		{name: "other_bytes", body: `{"segment_index":0,"media":"YWJj"}`},
		{name: "raw", kind: "application/octet-stream", body: "abc", malformed: true},
		{name: "unknown_upload", id: "12", body: `{"segment_index":1,"media":"YWJj"}`},
		{name: "no_file", kind: "multipart/form-data; boundary=x", malformed: true, body: "--x\r\nContent-Disposition: form-data; name=\"segment_index\"\r\n\r\n1\r\n" +
			"--x\r\nContent-Disposition: form-data; name=\"media\"\r\n\r\nabc\r\n--x--\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.x.Strict = true
			id := b.initialize(b.grant, "tweet_video", "video/mp4", 9)
			b.want(b.segment(b.grant, id, 0, "film"), 200, "")
			if test.id != "" {
				id = test.id
			}
			if test.kind == "" {
				test.kind = "application/json"
			}
			b.want(b.do(b.grant, "POST", "/2/media/upload/"+id+"/append", test.kind, test.body), 400, "")
			b.wantMalformed(test.malformed)
			if m := b.x.Media("ann")[0]; m.Segments != 1 || m.Size != 4 {
				t.Errorf("the refused segment was stored: %+v", m)
			}
		})
	}
	t.Run("index_in_form", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		id := b.initialize(b.grant, "tweet_video", "video/mp4", 9)
		b.want(b.segment(b.grant, id, 999, "film"), 200, "")
		b.want(b.segment(b.grant, id, 1000, "film"), 400, "")
		b.wantMalformed(true)
	})
}

// The edge checks only the size, before it identifies the caller.
func TestAppendEdge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.initialize(b.grant, "tweet_video", "video/mp4", 64<<20)
	refused := func(r result) {
		t.Helper()
		if r.status != 413 || r.body != "" || r.header.Get("x-rate-limit-limit") != "" {
			t.Errorf("%d %q %v, want an empty 413 without rate headers", r.status, r.body, r.header)
		}
	}
	refused(b.segment(b.grant, id, 0, strings.Repeat("x", 4<<20+1)))
	b.want(b.segment(b.grant, id, 0, strings.Repeat("x", 4<<20)), 200, "")

	b.x.MaxAppendBytes = 4
	encoded := func(bytes int) result {
		return b.do(b.grant, "POST", "/2/media/upload/"+id+"/append", "application/json",
			fmt.Sprintf(`{"segment_index":1,"media":%q}`, base64.StdEncoding.EncodeToString(make([]byte, bytes))))
	}
	refused(b.segment(b.grant, id, 1, "five!"))
	refused(b.segment(xsim.Grant{}, id, 1, "five!"))
	refused(encoded(4)) // is more than four characters
	b.want(encoded(3), 200, "")
	if m := b.x.Media("ann")[0]; m.Segments != 2 || m.Size != 4<<20+3 {
		t.Errorf("stored %+v", m)
	}
	b.wantViolations()
}

func TestFinalizeRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	size := len(mp4Bytes)
	id := b.initialize(b.grant, "tweet_video", "video/mp4", size)
	path := func(id string) string { return "/2/media/upload/" + id + "/finalize" }
	b.want(b.finalize(b.grant, id), 400, invalidRequest(fmt.Sprintf(`"total_bytes":["%d"]`, size), "the segments are 0 bytes"))
	b.want(b.segment(b.grant, id, 1, mp4Bytes[20:]), 200, "")
	b.want(b.finalize(b.grant, id), 400, invalidRequest(`"segment_index":["0"]`, "the segment is missing"))
	b.want(b.segment(b.grant, id, 0, mp4Bytes[:19]), 200, "")
	b.want(b.finalize(b.grant, id), 400, invalidRequest(fmt.Sprintf(`"total_bytes":["%d"]`, size), fmt.Sprintf("the segments are %d bytes", size-1)))
	b.wantInvalidMedia(b.finalize(b.grant, "12"), "id", "12")
	b.wantViolations()

	whole := b.chunked(b.grant, "tweet_video", "video/mp4", mp4Bytes)
	b.wantInvalidMedia(b.finalize(b.grant, whole), "id", whole)
	b.wantInvalidMedia(b.segment(b.grant, whole, 0, mp4Bytes[:20]), "id", whole)

	bob := b.account(xsim.NewAccount{Handle: "bob"})
	theirs := b.initialize(bob, "tweet_image", "image/png", len(pngBytes))
	b.wantInvalidMedia(b.segment(b.grant, theirs, 0, string(pngBytes)), "id", theirs)
	b.want(b.segment(bob, theirs, 0, string(pngBytes)), 200, "")
	b.wantInvalidMedia(b.finalize(b.grant, theirs), "id", theirs)
	b.wantViolations()

	b.want(b.do(bob, "POST", path(theirs), "application/json", `{"a":1}`), 400, "")
	b.want(b.finalize(bob, "7_"+theirs), 400, "")
	b.wantViolations("malformed_request", "malformed_request")
	b.want(b.finalize(bob, theirs), 200, "")
}

// Bytes must be of the declared type.
func TestFinalizeSniffs(t *testing.T) {
	t.Parallel()
	quicktime := strings.Replace(mp4Bytes, "isom", "qt  ", 1)
	stream := strings.Repeat("G"+strings.Repeat("x", 187), 2)
	for _, test := range []struct {
		name, category, kind, data string
		status                     int
	}{
		{"gif", "tweet_gif", "image/gif", string(gifBytes), 200},
		{"gif_as_png", "tweet_image", "image/png", string(gifBytes), 400},
		{"html", "tweet_video", "video/mp4", "<html> instead of a film", 400},
		{"mov", "tweet_video", "video/quicktime", quicktime, 200},
		{"mov_as_mp4", "tweet_video", "video/mp4", quicktime, 400},
		{"mp4", "amplify_video", "video/mp4", mp4Bytes, 200},
		{"mp4_as_gif", "tweet_gif", "image/gif", mp4Bytes, 400},
		{"stream", "tweet_video", "video/mp2t", stream, 200},
		{"webm", "tweet_video", "video/webm", "\x1A\x45\xDF\xA3 and some film", 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.x.MediaProcessing = -1
			id := b.initialize(b.grant, test.category, test.kind, len(test.data))
			b.want(b.segment(b.grant, id, 0, test.data), 200, "")
			b.want(b.finalize(b.grant, id), test.status, "")
			if r := b.attach(b.grant, id); (r.status == 201) != (test.status == 200) {
				t.Errorf("attach: %d %s", r.status, r.body)
			}
			b.wantViolations()
		})
	}
}

func TestStatusRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.chunked(b.grant, "tweet_video", "video/mp4", mp4Bytes)
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	b.wantInvalidMedia(b.status(bob, id), "media_id", id)
	b.wantInvalidMedia(b.status(b.grant, "12"), "media_id", "12")
	open := b.initialize(b.grant, "tweet_video", "video/mp4", 9)
	b.wantInvalidMedia(b.status(b.grant, open), "media_id", open)
	b.wantViolations()
	for _, query := range []string{"", "?media_id=", "?media_id=7_" + id, "?media_id=" + id + "&command=status", "?media_id=" + id + "&media_id=" + id, "?media_id=" + id + "&id=12"} {
		if r := b.do(b.grant, "GET", "/2/media/upload"+query, "", ""); r.status != 400 {
			t.Errorf("%q: %d %s", query, r.status, r.body)
		}
	}
	if n := len(b.x.Violations()); n != 6 {
		t.Errorf("%d violations: %+v", n, b.x.Violations())
	}
	if asked := b.x.Media("ann")[0].StatusAsked; asked != 0 {
		t.Errorf("refused questions are counted: %d", asked)
	}
}

func TestPostMediaNotReady(t *testing.T) {
	t.Parallel()
	b := setup(t)
	refused := func(g xsim.Grant, id string) {
		t.Helper()
		b.wantInvalidMedia(b.attach(g, id), "media.media_ids", id)
	}
	open := b.initialize(b.grant, "tweet_image", "image/png", len(pngBytes))
	refused(b.grant, open)
	b.want(b.segment(b.grant, open, 0, string(pngBytes)), 200, "")
	refused(b.grant, open)

	film := b.chunked(b.grant, "tweet_video", "video/mp4", mp4Bytes)
	refused(b.grant, film) // pending
	b.clock.pass(2 * time.Second)
	refused(b.grant, film) // in progress
	b.clock.pass(time.Second)
	refused(b.account(xsim.NewAccount{Handle: "bob"}), film)
	b.want(b.attach(b.grant, film), 201, "")
	direct := b.chunked(b.grant, "dm_video", "video/mp4", mp4Bytes)
	b.clock.pass(time.Minute)
	refused(b.grant, direct)
	b.wantViolations()
}

func TestPostMediaMixture(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.x.MediaProcessing = -1
	var images []string
	for range 4 {
		images = append(images, b.upload(b.grant, pngBytes))
	}
	loop, film := b.chunked(b.grant, "tweet_gif", "image/gif", string(gifBytes)), b.chunked(b.grant, "tweet_video", "video/mp4", mp4Bytes)
	for _, ids := range [][]string{{images[0], film}, {film, images[0]}, {loop, images[0]}, {loop, film}, {film, b.chunked(b.grant, "amplify_video", "video/mp4", mp4Bytes)}} {
		b.want(b.attach(b.grant, ids...), 400, "")
	}
	for _, ids := range [][]string{images, {loop}, {film}} {
		b.want(b.attach(b.grant, ids...), 201, "")
	}
	b.wantViolations()
}

func TestMediaFailed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.spec.Answers.Store(false) // v1.1's error is in no schema of v2
	b.want(b.control("PUT", "faults", `[{"kind":"media_failed","account":"ann","times":1},{"kind":"media_failed","detail":"Unsupported video format"}]`), 200, "")
	quiet, talking := b.chunked(b.grant, "tweet_video", "video/mp4", mp4Bytes), b.chunked(b.grant, "tweet_gif", "image/gif", string(gifBytes))
	for id, want := range map[string]string{
		quiet:   `"processing_info":{"state":"failed"}}}`,
		talking: `"processing_info":{"state":"failed","error":{"code":1,"name":"InvalidMedia","message":"Unsupported video format"}}}}`,
	} {
		if r := b.status(b.grant, id); !strings.Contains(r.body, `"state":"pending"`) {
			t.Errorf("failed before it was processed: %s", r.body)
		}
		b.clock.pass(3 * time.Second)
		if r := b.status(b.grant, id); r.status != 200 || !strings.HasSuffix(r.body, want) {
			t.Errorf("got %s, want %s", r.body, want)
		}
		b.wantInvalidMedia(b.attach(b.grant, id), "media.media_ids", id)
		b.want(b.do(b.grant, "POST", "/2/media/metadata", "application/json", `{"id":"`+id+`","metadata":{"alt_text":{"text":"A cat"}}}`), 400, "")
		b.clock.pass(-3 * time.Second)
	}
	image := b.chunked(b.grant, "tweet_image", "image/png", string(pngBytes)) // without processing it fails at once
	if r := b.status(b.grant, image); !strings.Contains(r.body, `"processing_info":{"state":"failed","error"`) {
		t.Errorf("image: %s", r.body)
	}
	if f := b.x.Faults(); f[0].Seen != 3 || f[0].Fired != 1 || f[1].Fired != 2 {
		t.Errorf("faults met other calls: %+v", f)
	}
	b.clock.pass(3 * time.Second)
	for _, m := range b.x.Media("ann") {
		if m.State != xsim.MediaFailed {
			t.Errorf("the call log say %+v", m)
		}
	}
	if err := b.x.SetFaults([]xsim.Fault{{Kind: xsim.FaultMediaFailed, Endpoint: xsim.EndpointCreatePost}}); err == nil {
		t.Error("a media_failed for another endpoint was taken")
	}
}

func TestExpireMedia(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	theirs, mine := b.upload(bob, pngBytes), b.upload(b.grant, pngBytes)
	open := b.initialize(b.grant, "tweet_image", "image/png", len(pngBytes))
	b.want(b.segment(b.grant, open, 0, string(pngBytes)), 200, "")
	b.want(b.control("DELETE", "media?user=nobody", ""), 404, "")
	b.want(b.control("DELETE", "media", ""), 404, "")
	b.want(b.control("DELETE", "media?user=ann", ""), 200, `{"expired":true}`)
	b.wantInvalidMedia(b.attach(b.grant, mine), "media.media_ids", mine)
	b.wantInvalidMedia(b.status(b.grant, mine), "media_id", mine)
	b.wantInvalidMedia(b.segment(b.grant, open, 0, string(pngBytes)), "id", open)
	b.wantInvalidMedia(b.finalize(b.grant, open), "id", open)
	b.want(b.attach(bob, theirs), 201, "")
	b.want(b.attach(b.grant, b.upload(b.grant, pngBytes)), 201, "")
	b.wantViolations()
}

// A medium that X says is ready may be refused all the same, and taken later.
func TestMediaRefusedThenTaken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.upload(b.grant, pngBytes)
	b.faults(xsim.Fault{Kind: xsim.FaultStatus, Status: 400, Variant: "media-ids", Endpoint: xsim.EndpointCreatePost, Times: 2})
	for range 2 {
		b.want(b.attach(b.grant, id), 400, invalidRequest(`"media.media_ids":[""]`, "Your media IDs are invalid."))
	}
	b.want(b.attach(b.grant, id), 201, "")
}

func TestMetadataOfVideo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	describe := func(id string) result {
		return b.do(b.grant, "POST", "/2/media/metadata", "application/json", `{"id":"`+id+`","metadata":{"alt_text":{"text":"A film"}}}`)
	}
	open := b.initialize(b.grant, "tweet_video", "video/mp4", 9)
	b.wantInvalidMedia(describe(open), "id", open)
	b.want(describe(b.chunked(b.grant, "tweet_video", "video/mp4", mp4Bytes)), 200, "")
	b.want(describe(b.chunked(b.grant, "tweet_gif", "image/gif", string(gifBytes))), 200, "")
	for _, m := range b.x.Media("ann")[1:] {
		if m.AltText != "A film" {
			t.Errorf("%+v", m)
		}
	}
}

// mediaCalls are one good call of each endpoint of a chunked upload, whose
// segments and, for finalize and STATUS, earlier steps are there.
func mediaCalls(b *testBundle) map[string]func() (result, error) {
	b.Helper()
	open := b.initialize(b.grant, "tweet_image", "image/png", len(pngBytes))
	full := b.initialize(b.grant, "tweet_image", "image/png", len(pngBytes))
	b.want(b.segment(b.grant, full, 0, string(pngBytes)), 200, "")
	done := b.chunked(b.grant, "tweet_image", "image/png", string(pngBytes))
	kind, segment := form("segment_index", "0", "media", string(pngBytes))
	try := func(method, path, kind, body string) func() (result, error) {
		return func() (result, error) { return b.try(b.grant, method, path, kind, body) }
	}
	return map[string]func() (result, error){
		xsim.EndpointInitialize: try("POST", "/2/media/upload/initialize", "application/json", `{"media_category":"tweet_image","media_type":"image/png","total_bytes":9}`),
		xsim.EndpointAppend:     try("POST", "/2/media/upload/"+open+"/append", kind, segment),
		xsim.EndpointFinalize:   try("POST", "/2/media/upload/"+full+"/finalize", "", ""),
		xsim.EndpointStatus:     try("GET", "/2/media/upload?command=STATUS&media_id="+done, "", ""),
	}
}

func TestMediaEndpointFaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fault  xsim.Fault
		status int // 0: an error instead of an answer
		effect bool
	}{
		{xsim.Fault{Kind: xsim.FaultCut}, 0, false},
		{xsim.Fault{Kind: xsim.FaultCut, After: true}, 0, true},
		{xsim.Fault{Kind: xsim.FaultGarbage}, 200, true},
		{xsim.Fault{Kind: xsim.FaultLostAnswer, DelayMS: 1}, 0, true},
		{xsim.Fault{Kind: xsim.FaultNoID}, 200, true},
		{xsim.Fault{Kind: xsim.FaultOutage}, 503, false},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 401}, 401, false},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 404}, 404, false},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 413}, 413, false},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 429}, 429, false},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 500}, 500, false},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 500, After: true}, 500, true},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 503}, 503, false},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 503, After: true}, 503, true},
	} {
		for _, endpoint := range []string{xsim.EndpointInitialize, xsim.EndpointAppend, xsim.EndpointFinalize, xsim.EndpointStatus} {
			t.Run(fmt.Sprintf("%s_%d_after_%v_%s", test.fault.Kind, test.fault.Status, test.fault.After, endpoint), func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				call := mediaCalls(b)[endpoint]
				fault := test.fault
				fault.Endpoint, fault.Times = endpoint, 1
				b.faults(xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 1, Endpoint: endpoint}, fault)
				r, err := call()
				if err == nil != (test.status != 0) || r.status != test.status {
					t.Errorf("got %d %v, want %d", r.status, err, test.status)
				}
				if id := field2xx(r); id != "" {
					t.Errorf("the answer has the id %s", id)
				}
				calls := b.x.Calls()
				last := calls[len(calls)-1]
				if effect := test.effect && endpoint != xsim.EndpointStatus; last.Endpoint != endpoint || last.Fault != fault.Kind || last.Effect != effect {
					t.Errorf("the call log say %+v, want effect %v", last, effect)
				}
				if f := b.x.Faults(); f[0].Fired != 1 || f[1].Fired != 1 {
					t.Errorf("%+v", f)
				}
				b.wantViolations()
			})
		}
	}
}

func TestMediaEndpointLimits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	calls := mediaCalls(b)
	b.limits() // all windows start anew
	for endpoint, want := range map[string][2]int{
		xsim.EndpointInitialize: {1_875, 180_000}, xsim.EndpointAppend: {1_875, 180_000},
		xsim.EndpointFinalize: {1_875, 180_000}, xsim.EndpointStatus: {1_000, 100_000},
	} {
		r, err := calls[endpoint]()
		if err != nil {
			t.Fatal(err)
		}
		b.want(r, 200, "")
		wantWindow(t, r.header, "x-rate-limit", want[0], want[0]-1, b.clock.now().Add(15*time.Minute+700*time.Millisecond))
		wantWindow(t, r.header, "x-app-limit-24hour", want[1], want[1]-1, b.clock.now().Add(24*time.Hour+700*time.Millisecond))
	}
}

func TestMediaEndpointScope(t *testing.T) {
	t.Parallel()
	b := setup(t)
	allowed := b.grant
	calls := mediaCalls(b)
	b.grant = b.account(xsim.NewAccount{Handle: "bob", Scope: "tweet.read tweet.write users.read offline.access"})
	for _, status := range []int{403, 401, 200} {
		for endpoint, call := range calls {
			if r, err := call(); err != nil || r.status != status {
				t.Errorf("%s: %d %s %v, want %d", endpoint, r.status, r.body, err, status)
			}
		}
		b.grant = map[int]xsim.Grant{403: {}, 401: allowed}[status]
	}
}

package consumers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	mp4Head = "\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp41"
	gifHead = "GIF89a\x01\x00\x01\x00\x80\x00\x00"
)

// file returns bytes that begin like a file of some kind. They are the same each time.
func file(head string, size int) []byte {
	data := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(data) // never fails
	copy(data, head)
	return data
}

// object stores a medium in the object store.
func (b *testBundle) object(t *testing.T, name string, data []byte) jetpost.Media {
	t.Helper()
	_, err := b.media.Objects.Put(t.Context(), jetstream.ObjectMeta{Name: name}, bytes.NewReader(data))
	testkit.Must(t, err)
	return jetpost.Media{Object: name}
}

// TestVideoInSegments uploads a video of 20 MB to X, while connections are cut before and
// after a segment, and X takes time to process it.
func TestVideoInSegments(t *testing.T) {
	t.Parallel()
	b := setup(t, func(x *xsim.Server) { x.MediaProcessing = 1500 * time.Millisecond })
	b.account(t, "acme", 0)
	video := file(mp4Head, 6_000_000)
	b.faults(t,
		xsim.Fault{Kind: xsim.FaultCut, Endpoint: xsim.EndpointAppend, Skip: 2, Times: 1},
		xsim.Fault{Kind: xsim.FaultCut, Endpoint: xsim.EndpointAppend, Skip: 4, Times: 1, After: true},
		xsim.Fault{Kind: xsim.FaultCut, Endpoint: xsim.EndpointFinalize, Times: 1, After: true},
	)
	key := b.accept(t, jetpost.Request{ID: "video", Posts: []jetpost.Post{{Text: "look", Media: []jetpost.Media{b.object(t, "video", video)}}}})
	h := b.lane()
	b.run(t, h, "acme")
	held := b.want(t, key, jetpost.StateHeld, jetpost.CodeMediaProcessing, 0)
	testkit.Equal(t, "attempts", held.Status.Attempts, 0)
	b.work(t, h)
	testkit.Eventually(t, "the video is live", func() bool { return b.record(t, key).Status.State == jetpost.StatePublished })
	media, posts := b.x.Media("acme"), b.x.Posts("acme")
	testkit.Equal(t, "uploads", len(media), 1)
	testkit.Equal(t, "bytes", media[0].SHA256, fmt.Sprintf("%x", sha256.Sum256(video)))
	testkit.Equal(t, "segments", media[0].Segments, 6)
	testkit.Equal(t, "calls for segments", b.calls(xsim.EndpointAppend), 8)
	testkit.Equal(t, "posts", len(posts), 1)
	testkit.Equal(t, "media of the post", fmt.Sprint(posts[0].MediaIDs), fmt.Sprint([]string{media[0].ID}))
}

// TestSegmentsGivenUp: a connection that stays cut counts no attempt. The upload starts
// over later.
func TestSegmentsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.faults(t, xsim.Fault{Kind: xsim.FaultCut, Endpoint: xsim.EndpointAppend, Times: 5})
		b.publish(t, "gif", jetpost.Post{Media: []jetpost.Media{{Data: file(gifHead, 1000), Alt: "a flicker"}}})
		held := b.want(t, b.key, jetpost.StateHeld, jetpost.CodeXUnavailable, 0)
		testkit.Equal(t, "attempts", held.Status.Attempts, 0)
		testkit.Equal(t, "calls for segments", b.calls(xsim.EndpointAppend), 4)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		media := b.x.Media("acme")
		testkit.Equal(t, "uploads", len(media), 2)
		testkit.Equal(t, "alternative text", media[1].AltText, "a flicker")
	})
}

// TestProcessing: no worker waits for X's processing, and processing that does not end
// fails the request.
func TestProcessing(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		takes time.Duration
		fault xsim.Fault
		state jetpost.State
		code  jetpost.Code
		says  string
	}{
		{name: "a while", takes: time.Minute, state: jetpost.StatePublished},
		{name: "too long", takes: 5 * time.Hour, state: jetpost.StateFailed, code: jetpost.CodeMediaInvalid, says: "within 1h"},
		{
			name: "failure", takes: time.Minute, fault: xsim.Fault{Kind: xsim.FaultMediaFailed, Endpoint: xsim.EndpointFinalize, Times: 1},
			state: jetpost.StateFailed, code: jetpost.CodeMediaInvalid, says: "could not process",
		},
		{
			name: "failure with words", takes: time.Minute, state: jetpost.StateFailed, code: jetpost.CodeMediaInvalid, says: "file is invalid",
			fault: xsim.Fault{Kind: xsim.FaultMediaFailed, Endpoint: xsim.EndpointFinalize, Times: 1, Detail: "file is invalid"},
		},
		{
			name: "status away for a while", takes: time.Minute, state: jetpost.StatePublished,
			fault: xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable, Endpoint: xsim.EndpointStatus, Times: 3},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t, func(x *xsim.Server) { x.MediaProcessing = test.takes })
				if test.fault.Kind != "" {
					b.faults(t, test.fault)
				}
				b.publish(t, "video", jetpost.Post{Text: "look", Media: []jetpost.Media{{Data: file(mp4Head, 100_000)}}})
				b.want(t, b.key, jetpost.StateHeld, jetpost.CodeMediaProcessing, 0)
				if test.takes > maxProcessing {
					sleep(maxProcessing) // nobody has to ask all the time
				}
				r, _ := b.settle(t)
				b.want(t, b.key, test.state, test.code, len(b.x.Posts("acme")))
				testkit.Equal(t, "uploads", len(b.x.Media("acme")), 1)
				if test.state == jetpost.StatePublished {
					return
				}
				testkit.Equal(t, "attempts", r.Status.Attempts, 0)
				if !strings.Contains(r.Status.Reason.Detail, test.says) {
					t.Errorf("the reason is %q", r.Status.Reason.Detail)
				}
				// A replay uploads it again.
				b.x.MediaProcessing = time.Second
				_, err := b.ledger.Replay(t.Context(), b.key, time.Now())
				testkit.Must(t, err)
				b.run(t, b.h, "acme")
				r, _ = b.settle(t)
				testkit.Equal(t, "state after the replay", r.Status.State, jetpost.StatePublished)
				testkit.Equal(t, "uploads", len(b.x.Media("acme")), 2)
			})
		})
	}
}

// TestUploadsExpire: a thread is held before its last post for longer than its media are
// valid. If the expiry is known, they are uploaded again before they are used, else after X
// refuses them.
func TestUploadsExpire(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("known %t", known), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t, func(x *xsim.Server) {
					x.Limits = []xsim.Limit{{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 2, WindowMS: (15 * time.Minute).Milliseconds()}}
					if known {
						x.MediaTTL = 10 * time.Minute
					}
				})
				posts := thread("one", "two", "three")
				posts[2].Media = []jetpost.Media{{Data: testImage(t)}}
				b.publish(t, "thread", posts...)
				b.want(t, b.key, jetpost.StateHeld, jetpost.CodeRateLimited, 2)
				testkit.Equal(t, "uploads ahead", len(b.x.Media("acme")), 1)
				b.x.ExpireMedia("acme")
				r, _ := b.settle(t)
				testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
				b.texts(t, "acme", "one", "two", "three")
				testkit.Equal(t, "uploads", len(b.x.Media("acme")), 2)
				refused := 0
				if !known {
					refused = 1
				}
				testkit.Equal(t, "posts refused", b.x.Counts()[xsim.EndpointCreatePost]["400"], refused)
				testkit.Equal(t, "attempts", r.Status.Attempts, 3)
			})
		})
	}
}

// TestMediaIDsRefusedAgain: refused media are uploaded again once.
func TestMediaIDsRefusedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusBadRequest, Variant: "media-ids", Endpoint: xsim.EndpointCreatePost, Times: 3})
		b.publish(t, "one", jetpost.Post{Text: "one", Media: []jetpost.Media{{Data: testImage(t)}}})
		b.want(t, b.key, jetpost.StateHeld, jetpost.CodeMediaProcessing, 0)
		r, _ := b.settle(t)
		b.want(t, b.key, jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
		testkit.Equal(t, "attempts", r.Status.Attempts, 1)
		testkit.Equal(t, "uploads", len(b.x.Media("acme")), 2)
		// A replay begins again, with other ids.
		_, err := b.ledger.Replay(t.Context(), b.key, time.Now())
		testkit.Must(t, err)
		b.run(t, b.h, "acme")
		b.want(t, b.key, jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
		testkit.Equal(t, "uploads", len(b.x.Media("acme")), 3)
		_, err = b.ledger.Replay(t.Context(), b.key, time.Now())
		testkit.Must(t, err)
		b.run(t, b.h, "acme")
		b.want(t, b.key, jetpost.StatePublished, "", 1)
	})
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t) // the hold for the processing of the second upload does not allow a third one
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusBadRequest, Variant: "media-ids", Endpoint: xsim.EndpointCreatePost, Times: 4})
		b.publish(t, "one", jetpost.Post{Text: "one", Media: []jetpost.Media{{Data: file(mp4Head, 100_000)}}})
		b.settle(t)
		b.want(t, b.key, jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
		testkit.Equal(t, "uploads", len(b.x.Media("acme")), 2)
	})
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t) // X refuses media ids of a post without media
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusBadRequest, Variant: "media-ids", Endpoint: xsim.EndpointCreatePost})
		b.publish(t, "one", thread("one")...)
		b.want(t, b.key, jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
	})
}

// TestFourImages: each image keeps its place and its description.
func TestFourImages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable, Endpoint: xsim.EndpointMetadata, Skip: 2, Times: 1})
		var media []jetpost.Media
		for i := range 4 {
			media = append(media, jetpost.Media{Data: append(testImage(t), byte(i)), Alt: fmt.Sprintf("image %d", i)})
		}
		b.publish(t, "four", jetpost.Post{Text: "look", Media: media})
		b.want(t, b.key, jetpost.StateHeld, jetpost.CodeXUnavailable, 0)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		uploads := map[string]xsim.Media{}
		for _, m := range b.x.Media("acme") {
			uploads[m.ID] = m
		}
		testkit.Equal(t, "uploads", len(uploads), 4) // the hold kept the finished ones
		testkit.Equal(t, "descriptions", b.calls(xsim.EndpointMetadata), 5)
		for i, id := range b.x.Posts("acme")[0].MediaIDs {
			testkit.Equal(t, "description", uploads[id].AltText, fmt.Sprintf("image %d", i))
			testkit.Equal(t, "bytes", uploads[id].SHA256, fmt.Sprintf("%x", sha256.Sum256(media[i].Data)))
		}
	})
}

// TestMediaChanged: the bytes of the acceptance are posted, or nothing.
func TestMediaChanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	data, other := testImage(t), append(testImage(t), 1)
	medium := b.object(t, "logo", data)
	key := b.accept(t, jetpost.Request{ID: "one", Posts: []jetpost.Post{{Text: "one"}, {Text: "two", Media: []jetpost.Media{medium}}}})
	b.object(t, "logo", other)
	h := b.lane()
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StateFailed, jetpost.CodeMediaChanged, 0)
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 0)
	b.object(t, "logo", data)
	_, err := b.ledger.Replay(t.Context(), key, time.Now())
	testkit.Must(t, err)
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StatePublished, "", 2)
	testkit.Equal(t, "bytes", b.x.Media("acme")[0].SHA256, fmt.Sprintf("%x", sha256.Sum256(data)))
}

// TestURLChanged: a url is pinned after it was read, so that a second upload has the same
// bytes.
func TestURLChanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	data := atomic.Pointer[[]byte]{}
	first, other := testImage(t), append(testImage(t), 1)
	data.Store(&first)
	site := website(t, "127.0.0.1", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(*data.Load()) })
	b.media.Private, b.media.roots = loopback, trusting(site).roots
	b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusBadRequest, Variant: "media-ids", Endpoint: xsim.EndpointCreatePost, Skip: 1, Times: 1})
	key := b.accept(t, jetpost.Request{ID: "one", Posts: []jetpost.Post{{Text: "one"}, {Text: "two", Media: []jetpost.Media{{URL: site.URL}}}}})
	h := b.lane()
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StateHeld, jetpost.CodeMediaProcessing, 1)
	data.Store(&other)
	b.endHold(t, key, jetpost.CodeMediaProcessing)
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StateFailed, jetpost.CodeMediaChanged, 1)
}

// TestMediaTogether: a post with media that X does not accept together does not begin.
func TestMediaTogether(t *testing.T) {
	t.Parallel()
	image, gif, video := jetpost.Media{Data: testImage(t)}, jetpost.Media{Data: file(gifHead, 100)}, jetpost.Media{Data: file(mp4Head, 100)}
	for name, media := range map[string][]jetpost.Media{
		"image and GIF": {image, gif}, "GIF and image": {gif, image}, "two GIFs": {gif, gif}, "image and video": {image, video}, "two videos": {video, video},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t)
				b.publish(t, "thread", jetpost.Post{Text: "one"}, jetpost.Post{Text: "two", Media: media})
				b.want(t, b.key, jetpost.StateFailed, jetpost.CodeMediaInvalid, 0)
				testkit.Equal(t, "uploads", len(b.x.Media("acme")), 0)
			})
		})
	}
}

// TestUploadsAhead: the media of later posts are uploaded while earlier posts are sent, and
// the images of a post concurrently, within the budget of bytes.
func TestUploadsAhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		var posts []jetpost.Post
		const count, images = 18, 4
		for i := range count {
			p := jetpost.Post{Text: fmt.Sprint("post ", i)}
			for n := range images {
				if i > 0 {
					p.Media = append(p.Media, jetpost.Media{Data: append(testImage(t), byte(i), byte(n))})
				}
			}
			posts = append(posts, p)
		}
		var mu sync.Mutex
		uploading, most, sent := 0, 0, make(chan struct{})
		full := sync.OnceFunc(func() { close(sent) })
		b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
			switch r.URL.Path {
			case "/2/media/upload":
				mu.Lock()
				uploading++
				most = max(most, uploading)
				if uploading == uploadBytes/uploadLeast {
					full() // the first post is sent only now
				}
				mu.Unlock()
				<-sent
				defer func() { mu.Lock(); uploading--; mu.Unlock() }()
			case "/2/tweets":
				<-sent
			}
			return b.x.RoundTrip(r)
		})
		b.publish(t, "thread", posts...)
		b.want(t, b.key, jetpost.StatePublished, "", len(posts))
		testkit.Equal(t, "uploads at once", most, uploadBytes/uploadLeast)
		testkit.Equal(t, "uploads", len(b.x.Media("acme")), (count-1)*images)
	})
}

// heldWrite is a thread of images whose first write of media to the ledger waits for the test,
// while X gets all other images.
type heldWrite struct {
	*doubtBundle
	hook     *ledgerHook
	writes   int        // to the ledger, of media
	answer   chan error // of the first one; nil has it made
	panics   bool       // the second one does
	stopping chan struct{}
	ended    chan any // what the lane panicked with, once it has ended
}

// holdWrite accepts a thread of ten posts, and runs its lane until nothing goes on but the first
// write. The first post has one image and the others have four each. The last image has a
// description, and is the last one to reach X.
func holdWrite(t *testing.T) *heldWrite {
	t.Helper()
	b := &heldWrite{doubtBundle: doubt(t), answer: make(chan error), stopping: make(chan struct{}), ended: make(chan any, 1)}
	const first, last = 4096, 8192 // the least bytes of the first and the last image
	underWay, gathering := make(chan struct{}), make(chan struct{})
	b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
		switch {
		case r.URL.Path != "/2/media/upload":
		case r.ContentLength > last:
			<-gathering
		case r.ContentLength < first:
			<-underWay
		}
		return b.x.RoundTrip(r)
	})
	b.hook = &ledgerHook{Store: b.ledger, before: b.held(underWay)}
	images := func(post, n, size int) (media []jetpost.Media) {
		for i := range n {
			media = append(media, jetpost.Media{Data: append(testImage(t), append(make([]byte, size), byte(post), byte(i))...)})
		}
		return media
	}
	posts := []jetpost.Post{{Media: images(0, 1, first)}}
	for i := 1; i < 10; i++ {
		posts = append(posts, jetpost.Post{Media: images(i, 4, 0)})
	}
	posts[9].Media[3] = images(9, 1, last)[0]
	posts[9].Media[3].Alt = "the last one"
	b.queue(t, jetpost.Request{Account: "acme", ID: "thread", Posts: posts})
	h := *b.h
	h.Ledger = b.hook
	go func() {
		defer func() { b.ended <- recover() }()
		d := b.wake("acme")
		d.Stopping = b.stopping
		if err := h.Handle(t.Context(), d); err != nil {
			t.Error(err)
		}
	}()
	synctest.Wait()
	close(gathering)
	synctest.Wait()
	testkit.Equal(t, "images at X", len(b.x.Media("acme")), 37)
	testkit.Equal(t, "writes under way", b.writes, 1)
	testkit.Equal(t, "descriptions before the ledger has the image", b.calls(xsim.EndpointMetadata), 0)
	return b
}

// held counts the writes of media, and has the first one wait.
func (b *heldWrite) held(underWay chan struct{}) func(string) error {
	var mu sync.Mutex
	return func(op string) error {
		if op != "uploaded" {
			return nil
		}
		mu.Lock()
		b.writes++
		n := b.writes
		mu.Unlock()
		switch {
		case n == 1:
			close(underWay)
			return <-b.answer
		case n == 2 && b.panics:
			panic("dies")
		}
		return nil
	}
}

// TestMediaWrittenTogether: one more write stores all media that X got while a write to the
// ledger was under way. If it is not made, no upload goes on.
func TestMediaWrittenTogether(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		meanwhile func(*testing.T, *heldWrite)
		answer    error // of the first write
		writes    int
		state     jetpost.State
		posted    int
	}{
		{name: "made", writes: 3, state: jetpost.StatePublished, posted: 10}, // the third one is of the description
		{name: "database away", answer: errAway, writes: 4, state: jetpost.StatePublished, posted: 10},
		{name: "panic", writes: 2, state: jetpost.StateQueued, meanwhile: func(_ *testing.T, b *heldWrite) { b.panics = true }},
		{name: "cancelled", writes: 2, state: jetpost.StateCancelled, meanwhile: func(t *testing.T, b *heldWrite) {
			t.Helper()
			_, err := b.ledger.Cancel(t.Context(), b.key, time.Now())
			testkit.Must(t, err)
		}},
		{name: "lane lost", writes: 2, state: jetpost.StateQueued, meanwhile: func(t *testing.T, b *heldWrite) {
			t.Helper()
			b.hook.expire(t)
			_, claimed, err := b.ledger.ClaimLane(t.Context(), "acme", "another", time.Minute, time.Now())
			testkit.Must(t, err)
			testkit.Equal(t, "taken over", claimed, true)
		}},
		{name: "stop", writes: 2, state: jetpost.StateQueued, meanwhile: func(_ *testing.T, b *heldWrite) {
			close(b.stopping)
			synctest.Wait()
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := holdWrite(t)
				if test.meanwhile != nil {
					test.meanwhile(t, b)
				}
				b.answer <- test.answer
				testkit.Equal(t, "panicked", <-b.ended != nil, b.panics)
				testkit.Equal(t, "writes", b.writes, test.writes)
				testkit.Equal(t, "images at X", len(b.x.Media("acme")), 37)
				r := b.want(t, b.key, test.state, "", test.posted)
				if test.posted == 0 {
					testkit.Equal(t, "descriptions", b.calls(xsim.EndpointMetadata), 0)
					return
				}
				for _, p := range r.Posts {
					var ids []string
					for _, m := range p.Media {
						ids = append(ids, m.ID)
					}
					testkit.Equal(t, fmt.Sprint("stored media of post ", p.Index), fmt.Sprint(ids), fmt.Sprint(p.MediaIDs))
				}
				testkit.Equal(t, "description", r.Posts[9].Media[3].Described, true)
			})
		})
	}
}

// TestUploadsInterrupted: a worker that is asked to stop, or has lost the lane, does not go
// on with uploads. The request is not held, and the next worker posts it.
func TestUploadsInterrupted(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"stop", "stop while a source is read", "lane lost"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t)
				stopping, ended := make(chan struct{}), make(chan struct{})
				var healed atomic.Bool
				hook := &ledgerHook{Store: b.ledger}
				h := *b.h
				h.Ledger = hook
				media := jetpost.Media{Data: file(mp4Head, 100_000)}
				if how == "stop while a source is read" {
					h.Media = &mediaSource{Objects: &slowObjects{every: time.Hour, pieces: 1, size: 1}}
				}
				b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
					if !healed.Load() && strings.HasSuffix(r.URL.Path, "/append") {
						<-r.Context().Done() // it never ends
						return nil, r.Context().Err()
					}
					return b.x.RoundTrip(r)
				})
				request := jetpost.Request{Account: "acme", ID: "one", Posts: []jetpost.Post{{Text: "one", Media: []jetpost.Media{media}}}}
				if how == "stop while a source is read" {
					request.Posts[0].Media[0] = jetpost.Media{Object: "x"}
				}
				b.queue(t, request)
				go func() {
					defer close(ended)
					d := b.wake("acme")
					d.Stopping = stopping
					_ = h.Handle(t.Context(), d) // the worker dies in it
				}()
				synctest.Wait()
				began := time.Now()
				if how == "lane lost" {
					hook.expire(t)
					_, claimed, err := b.ledger.ClaimLane(t.Context(), "acme", "another", time.Millisecond, time.Now())
					testkit.Must(t, err)
					testkit.Equal(t, "taken over", claimed, true)
				} else {
					close(stopping)
				}
				<-ended
				if took := time.Since(began); took > DefaultLease {
					t.Errorf("it took %s", took)
				}
				r := b.record(t, b.key)
				testkit.Equal(t, "state", r.Status.State, jetpost.StateQueued)
				testkit.Equal(t, "attempts", r.Status.Attempts, 0)
				if how == "stop while a source is read" {
					return
				}
				healed.Store(true)
				sleep(time.Second)
				b.run(t, b.h, "acme")
				r, _ = b.settle(t)
				testkit.Equal(t, "state in the end", r.Status.State, jetpost.StatePublished)
			})
		})
	}
}

// queue accepts a request.
func (b *doubtBundle) queue(t *testing.T, r jetpost.Request) {
	t.Helper()
	testkit.Must(t, r.Validate())
	body, err := json.Marshal(r)
	testkit.Must(t, err)
	_, err = b.ledger.Accept(t.Context(), store.Acceptance{Request: r, Body: body, Digest: r.Digest(), Now: time.Now()})
	testkit.Must(t, err)
	b.key = store.Key{Account: r.Account, ID: r.ID}
}

// TestUploadPanics: a panic in an upload counts as one of the lane, so the runner and the
// count of lost claims handle it.
func TestUploadPanics(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"read", "upload"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t)
				media := jetpost.Media{Data: testImage(t)}
				if where == "read" {
					media = jetpost.Media{Object: "x"} // there is no object store at all
				}
				b.trip(t)
				sleep(admission.BreakerOpen + time.Second)
				b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
					if r.URL.Path == "/2/media/upload" {
						panic("upload")
					}
					return b.x.RoundTrip(r)
				})
				b.queue(t, jetpost.Request{Account: "acme", ID: "one", Posts: []jetpost.Post{{Text: "one", Media: []jetpost.Media{media}}}})
				func() {
					defer func() {
						if _, ok := recover().(*panicError); !ok {
							t.Error("the lane did not panic")
						}
					}()
					b.run(t, b.h, "acme")
				}()
				b.want(t, b.key, jetpost.StateQueued, "", 0)
				done, err := b.h.Gate.Allow(time.Now())
				testkit.Must(t, err)
				if _, err := b.h.Gate.Allow(time.Now()); err == nil {
					t.Error("the breaker took a panic for an answer")
				}
				done(nil)
			})
		})
	}
}

// trip trips the breaker.
func (b *doubtBundle) trip(t *testing.T) {
	t.Helper()
	trip(t, b.h.Gate)
}

// TestVideosOneByOne: several videos at once would use up their shared window before one is
// finished. A video that X processes does not end another one's upload.
func TestVideosOneByOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t, func(x *xsim.Server) { x.MediaProcessing = 6 * time.Second })
		var mu sync.Mutex
		uploading, most := 0, 0
		b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/append") {
				mu.Lock()
				uploading++
				most = max(most, uploading)
				mu.Unlock()
				sleep(2 * time.Second)
				defer func() { mu.Lock(); uploading--; mu.Unlock() }()
			}
			return b.x.RoundTrip(r)
		})
		var posts []jetpost.Post
		for i := range 3 {
			source := &mediaSource{Objects: &slowObjects{pieces: 1, size: 12 << 20}}
			b.h.Media = source
			posts = append(posts, jetpost.Post{Text: fmt.Sprint("post ", i), Media: []jetpost.Media{{Object: fmt.Sprint("video", i)}}})
		}
		b.publish(t, "thread", posts...)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		testkit.Equal(t, "segments at once", most, 1)
		testkit.Equal(t, "uploads begun", b.calls(xsim.EndpointInitialize), 3)
		testkit.Equal(t, "segments", b.calls(xsim.EndpointAppend), 36)
	})
}

// TestUploadWindow: concurrent uploads do not exceed a known window.
func TestUploadWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t, func(x *xsim.Server) {
			x.Limits = []xsim.Limit{{Endpoint: xsim.EndpointUpload, Scope: xsim.ScopeUser, Max: 8, WindowMS: (15 * time.Minute).Milliseconds()}}
		})
		b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
			sleep(time.Second) // so that several are in flight
			return b.x.RoundTrip(r)
		})
		b.publish(t, "first", jetpost.Post{Media: []jetpost.Media{{Data: testImage(t)}}})
		b.want(t, b.key, jetpost.StatePublished, "", 1)
		var posts []jetpost.Post
		for i := range 10 {
			posts = append(posts, jetpost.Post{Text: fmt.Sprint("post ", i), Media: []jetpost.Media{{Data: append(testImage(t), byte(i))}}})
		}
		b.publish(t, "thread", posts...)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		testkit.Equal(t, "uploads refused", b.x.Counts()[xsim.EndpointUpload]["429"], 0)
		testkit.Equal(t, "uploads", len(b.x.Media("acme")), 11)
		testkit.Equal(t, "calls for them", b.calls(xsim.EndpointUpload), 11)
	})
	synctest.Test(t, func(t *testing.T) { // only calls that were answered count in the window
		b := doubt(t, func(x *xsim.Server) {
			x.Limits = []xsim.Limit{{Endpoint: xsim.EndpointUpload, Scope: xsim.ScopeUser, Max: 30, WindowMS: (15 * time.Minute).Milliseconds()}}
		})
		var posts []jetpost.Post
		for i := range 20 {
			posts = append(posts, jetpost.Post{Text: fmt.Sprint("post ", i), Media: []jetpost.Media{{Data: append(testImage(t), byte(i))}}})
		}
		b.publish(t, "thread", posts...)
		b.want(t, b.key, jetpost.StatePublished, "", 20)
	})
}

// TestThreadWaitsForUploads: a thread does not begin if its uploads do not fit into the
// window. One that needs more than the limit of a window waits for a full one.
func TestThreadWaitsForUploads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t, func(x *xsim.Server) {
			x.Limits = []xsim.Limit{{Endpoint: xsim.EndpointMetadata, Scope: xsim.ScopeUser, Max: 3, WindowMS: (15 * time.Minute).Milliseconds()}}
		})
		pictured := func(n int) (posts []jetpost.Post) {
			for i := range n {
				posts = append(posts, jetpost.Post{Text: fmt.Sprint(n, i), Media: []jetpost.Media{{Data: append(testImage(t), byte(i)), Alt: "grey"}}})
			}
			return posts
		}
		b.publish(t, "first", pictured(2)...)
		b.want(t, b.key, jetpost.StatePublished, "", 2)
		b.publish(t, "second", pictured(3)...)
		r := b.want(t, b.key, jetpost.StateHeld, jetpost.CodeRateLimited, 0)
		if want := "1 of 3 calls are left in a window of 15min, and 3 are needed: POST /2/media/metadata"; r.Status.Reason.Detail != want {
			t.Errorf("held: %s, want: %s", r.Status.Reason.Detail, want)
		}
		r, _ = b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		b.publish(t, "long", pictured(5)...)
		b.want(t, b.key, jetpost.StateHeld, jetpost.CodeRateLimited, 0)
		r, _ = b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
	})
}

// TestHoldLetsUploadsEnd: uploads under way during a hold of a later post are finished and
// not repeated.
func TestHoldLetsUploadsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t, func(x *xsim.Server) {
			x.Limits = []xsim.Limit{{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 1, WindowMS: (15 * time.Minute).Milliseconds()}}
		})
		b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/2/media/upload" {
				defer sleep(5 * time.Second) // a slow answer
			}
			return b.x.RoundTrip(r)
		})
		b.publish(t, "thread", jetpost.Post{Text: "one"}, jetpost.Post{Text: "two", Media: []jetpost.Media{{Data: testImage(t)}}})
		b.want(t, b.key, jetpost.StateHeld, jetpost.CodeRateLimited, 1)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		testkit.Equal(t, "uploads", b.calls(xsim.EndpointUpload), 1)
	})
}

// TestUploadsAndBreaker: a long upload does not keep the breaker waiting, and a tripped
// breaker does not end an upload.
func TestUploadsAndBreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.trip(t)
		sleep(admission.BreakerOpen + time.Second)
		appended := false
		b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
			if !appended && strings.HasSuffix(r.URL.Path, "/append") {
				appended = true
				done, err := b.h.Gate.Allow(time.Now())
				if err != nil {
					t.Errorf("the breaker waits for the upload: %v", err)
				} else {
					done(nil)
				}
				b.trip(t)
			}
			return b.x.RoundTrip(r)
		})
		b.h.Media = &mediaSource{Objects: fewObjects{files: map[string][]byte{"video": file(mp4Head, 2_500_000)}}}
		b.publish(t, "one", jetpost.Post{Text: "one", Media: []jetpost.Media{{Object: "video"}}})
		b.want(t, b.key, jetpost.StateHeld, jetpost.CodeMediaProcessing, 0)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		testkit.Equal(t, "uploads begun", b.calls(xsim.EndpointInitialize), 1)
	})
}

// TestUploadsForgotten: uploads that X forgets quickly are posted at once, or not at all.
func TestUploadsForgotten(t *testing.T) {
	t.Parallel()
	for _, processing := range []time.Duration{0, 2 * time.Minute} {
		t.Run(processing.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t, func(x *xsim.Server) { x.MediaTTL, x.MediaProcessing = 20*time.Second, processing })
				data := file(mp4Head, 100_000)
				if processing == 0 {
					data = testImage(t)
				}
				b.publish(t, "one", jetpost.Post{Text: "one", Media: []jetpost.Media{{Data: data}}})
				r, _ := b.settle(t)
				if processing == 0 {
					testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
					testkit.Equal(t, "uploads", len(b.x.Media("acme")), 2) // the first one expires within a lease
					return
				}
				b.want(t, b.key, jetpost.StateFailed, jetpost.CodeMediaInvalid, 0)
				testkit.Equal(t, "uploads begun", b.calls(xsim.EndpointInitialize), 1)
				testkit.Equal(t, "stored id", r.Posts[0].Media[0].ID, "")
			})
		})
	}
}

// TestTriesAfterProgress: failures before a successful post do not count against the next
// one.
func TestTriesAfterProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		left, seen := edgeTries, 0
		b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/2/tweets" && r.Method == http.MethodPost {
				if seen++; seen <= left || seen == left+2 {
					return &http.Response{StatusCode: http.StatusNotFound, Body: http.NoBody, Header: http.Header{}, Request: r}, nil
				}
			}
			return b.x.RoundTrip(r)
		})
		b.publish(t, "thread", thread("one", "two")...)
		for range 3 { // settle gives up after half a day
			for r := b.record(t, b.key); seen <= left && r.Status.State == jetpost.StateHeld; r = b.record(t, b.key) {
				sleep(time.Until(r.HoldUntil))
				b.run(t, b.h, "acme")
			}
		}
		r := b.want(t, b.key, jetpost.StateHeld, jetpost.CodeXUnavailable, 1)
		testkit.Equal(t, "holds", r.Holds, 1)
		r, _ = b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
	})
}

// TestMediaRoom: files are released in whatever way a thread ends. If there is no room for
// a file, the request waits and says so.
func TestMediaRoom(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	open := func() (n int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("the system does not show open files")
		}
		for _, fd := range fds {
			if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, dir) && strings.Contains(target, "jetpost-media") {
				n++
			}
		}
		return n
	}
	image := testImage(t)
	for _, media := range [][]jetpost.Media{
		{{Object: "image"}, {Object: "image"}},
		{{Object: "image"}, {Object: "text"}}, {{Object: "image"}, {Object: "none"}}, {{Object: "image"}, {Object: "gif"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := doubt(t)
			b.h.Media = &mediaSource{Objects: fewObjects{files: map[string][]byte{"image": image, "text": []byte("text"), "gif": []byte(gifHead)}}}
			b.publish(t, "one", jetpost.Post{Text: "one", Media: media})
			testkit.Equal(t, "files open after "+media[1].Object, open(), 0)
		})
	}
	outer := t
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		outer.Setenv("TMPDIR", filepath.Join(dir, "none"))
		b.h.Media = &mediaSource{Objects: fewObjects{files: map[string][]byte{"image": image}}}
		b.publish(t, "one", jetpost.Post{Text: "one", Media: []jetpost.Media{{Object: "image"}}})
		r := b.want(t, b.key, jetpost.StateHeld, jetpost.CodeMediaUnavailable, 0)
		if !strings.Contains(r.Status.Reason.Detail, "room") {
			t.Errorf("the reason is %q", r.Status.Reason.Detail)
		}
	})
}

// fewObjects is an object store in memory.
type fewObjects struct {
	jetstream.ObjectStore
	files map[string][]byte
}

func (o fewObjects) GetInfo(_ context.Context, name string, _ ...jetstream.GetObjectInfoOpt) (*jetstream.ObjectInfo, error) {
	if _, ok := o.files[name]; !ok {
		return nil, jetstream.ErrObjectNotFound
	}
	return &jetstream.ObjectInfo{}, nil
}

func (o fewObjects) Get(_ context.Context, name string, _ ...jetstream.GetObjectOpt) (jetstream.ObjectResult, error) {
	return memoryObject{Reader: bytes.NewReader(o.files[name])}, nil
}

// memoryObject is an object of it.
type memoryObject struct {
	jetstream.ObjectResult
	*bytes.Reader
}

func (o memoryObject) Read(b []byte) (int, error) { return o.Reader.Read(b) }
func (o memoryObject) Close() error               { return nil }

// TestUploadOutlivesItsWorker: if a worker dies between an upload and its post, the next
// worker uses that upload.
func TestUploadOutlivesItsWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		died := fmt.Errorf("dead")
		hook := &ledgerHook{Store: b.ledger, before: nth("begin", 1, func() error { panic(died) })}
		h := *b.h
		h.Ledger = hook
		func() {
			defer func() { testkit.Equal(t, "died of", recover(), any(died)) }()
			first := b.h
			b.h = &h
			defer func() { b.h = first }()
			b.publish(t, "one", jetpost.Post{Text: "one", Media: []jetpost.Media{{Data: testImage(t)}}})
		}()
		hook.expire(t)
		b.run(t, b.h, "acme")
		b.want(t, b.key, jetpost.StatePublished, "", 1)
		testkit.Equal(t, "uploads", len(b.x.Media("acme")), 1)
	})
}

package consumers

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"image"
	"image/png"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// picture is a PNG that X takes.
func picture(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	check(t, png.Encode(&buf, image.NewGray(image.Rect(0, 0, 8, 8))))
	return buf.Bytes()
}

// website serves media by TLS on a loopback address of its own.
func website(t *testing.T, address string, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(address, "0"))
	check(t, err)
	check(t, s.Listener.Close())
	s.Listener = l
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// trusting is a source that trusts the certificate of website.
func trusting(s *httptest.Server) *MediaSource {
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return &MediaSource{roots: roots, AllowPrivate: true}
}

// TestMediaReachesX posts one image from each place that a request can name.
func TestMediaReachesX(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	data := picture(t)
	object, err := b.pub.PutMedia(t.Context(), bytes.NewReader(data))
	check(t, err)
	site := website(t, "127.0.0.1", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html") // which nobody believes
		_, _ = w.Write(data)
	})
	source := trusting(site)
	source.Objects, err = b.js.ObjectStore(t.Context(), b.names.MediaBucket())
	check(t, err)
	key := b.accept(t, jetpost.Request{ID: "one", Posts: []jetpost.Post{
		{Text: "one", Media: []jetpost.Media{{Data: data, Alt: "a grey square"}, {Object: object}}},
		{Media: []jetpost.Media{{URL: site.URL + "/picture"}}},
	}})
	b.run(t, b.lane(func(h *PublishHandler) { h.Media = source }), "acme")
	b.want(t, key, jetpost.StatePublished, "", 2)
	posts, media := b.x.Posts("acme"), b.x.Media("acme")
	if len(media) != 3 || len(posts[0].MediaIDs) != 2 || posts[0].MediaIDs[1] != media[1].ID || posts[1].MediaIDs[0] != media[2].ID {
		t.Fatalf("posts are %+v, media %+v", posts, media)
	}
	equal(t, "alternative text", media[0].AltText, "a grey square")
	equal(t, "size", media[2].Size, len(data))
}

func TestMediaSource(t *testing.T) {
	t.Parallel()
	b := setup(t)
	objects, err := b.js.ObjectStore(t.Context(), b.names.MediaBucket())
	check(t, err)
	put := func(data []byte) jetpost.Media {
		object, err := b.pub.PutMedia(t.Context(), bytes.NewReader(data))
		check(t, err)
		return jetpost.Media{Object: object}
	}
	data := picture(t)
	large := append(bytes.Clone(data), make([]byte, xapi.MaxImageBytes)...)
	var site *httptest.Server
	site = website(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; path {
		case "/404":
			http.NotFound(w, r)
		case "/429":
			w.WriteHeader(http.StatusTooManyRequests)
		case "/500":
			w.WriteHeader(http.StatusInternalServerError)
		case "/cut":
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(data)
		case "/large":
			_, _ = w.Write(large)
		case "/r1", "/r2", "/r3", "/r4":
			http.Redirect(w, r, "/r"+string(path[2]-1), http.StatusFound)
		case "/http":
			http.Redirect(w, r, strings.Replace(site.URL, "https", "http", 1), http.StatusFound)
		default: // also /r0
			_, _ = w.Write(data)
		}
	})
	source := trusting(site)
	source.Objects = objects
	url := func(path string) jetpost.Media { return jetpost.Media{URL: site.URL + path + "?signature=secret"} }
	const fine, gone, later = 0, 1, 2
	tests := []struct {
		name  string
		media jetpost.Media
		want  int
	}{
		{"data", jetpost.Media{Data: data}, fine},
		{"data of a GIF", jetpost.Media{Data: []byte("GIF89a......")}, gone},
		{"data of text", jetpost.Media{Data: []byte("<html>")}, gone},
		{"object", put(data), fine},
		{"object missing", jetpost.Media{Object: "none"}, gone},
		{"object too large", put(large), gone},
		{"url", url("/x"), fine},
		{"url cut", url("/cut"), later},
		{"url fails", url("/500"), later},
		{"url gone", url("/404"), gone},
		{"url limited", url("/429"), later},
		{"url nobody listens", jetpost.Media{URL: "https://127.0.0.1:1/x?signature=secret"}, later},
		{"url redirects thrice", url("/r3"), fine},
		{"url redirects too often", url("/r4"), gone},
		{"url too large", url("/large"), gone},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := source.Open(t.Context(), test.media)
			var fault *mediaError
			switch {
			case test.want == fine && (err != nil || got.mime != "image/png" || !bytes.Equal(got.data, data)):
				t.Errorf("got %d bytes of %s: %v", len(got.data), got.mime, err)
			case test.want != fine && (!errors.As(err, &fault) || fault.permanent != (test.want == gone)):
				t.Errorf("error is %v (%+v)", err, fault)
			case err != nil && strings.Contains(err.Error(), "secret"):
				t.Errorf("error tells a secret: %v", err)
			}
		})
	}
	t.Run("url leaves https", func(t *testing.T) {
		t.Parallel()
		careful := trusting(site)
		careful.AllowPrivate, careful.public = false, netip.MustParseAddr("127.0.0.1")
		var fault *mediaError
		if _, err := careful.Open(t.Context(), url("/http")); !errors.Is(err, errRedirect) || !errors.As(err, &fault) || !fault.permanent {
			t.Errorf("error is %v", err)
		}
	})
}

// TestMediaPrivateAddress: nothing inside is reached, whatever name leads
// there, neither directly nor by a redirect.
func TestMediaPrivateAddress(t *testing.T) {
	t.Parallel()
	reached := make(chan string, 10)
	inside := website(t, "127.0.0.2", func(_ http.ResponseWriter, r *http.Request) { reached <- r.URL.Path })
	outside := website(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, inside.URL+"/by-redirect", http.StatusFound)
	})
	source := trusting(outside)
	source.AllowPrivate = false
	_, port, err := net.SplitHostPort(outside.Listener.Addr().String())
	check(t, err)
	refused := func(url string) {
		t.Helper()
		_, err := source.Open(t.Context(), jetpost.Media{URL: url})
		var fault *mediaError
		if !errors.Is(err, errPrivate) || !errors.As(err, &fault) || !fault.permanent {
			t.Errorf("%s: error is %v", url, err)
		}
	}
	refused("https://localhost:" + port) // known only after the name was resolved
	refused(outside.URL)
	source.public = netip.MustParseAddr("127.0.0.1")
	refused(outside.URL)
	select {
	case path := <-reached:
		t.Errorf("%s was fetched", path)
	default:
	}
}

func TestMediaAdmits(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"1.1.1.1": true, "93.184.215.14": true, "2606:4700::1111": true, "::ffff:1.1.1.1": true,
		"0.0.0.0": false, "0.1.2.3": false, "10.0.0.1": false, "100.64.0.1": false, "127.0.0.1": false, "127.9.9.9": false,
		"169.254.169.254": false, "172.16.0.1": false, "192.0.0.1": false, "192.168.1.1": false, "198.18.0.1": false,
		"224.0.0.1": false, "240.0.0.1": false, "255.255.255.255": false,
		"::": false, "::1": false, "::127.0.0.1": false, "::ffff:10.0.0.1": false, "::ffff:127.0.0.1": false,
		"2001::1": false, "2002:7f00:1::": false, "64:ff9b::7f00:1": false, "64:ff9b:1::a00:1": false,
		"fc00::1": false, "fd12::1": false, "fe80::1": false, "fec0::1": false, "ff02::1": false,
	} {
		err := (&MediaSource{}).admit("tcp", net.JoinHostPort(address, "443"), nil)
		equal(t, address, err == nil, want)
		check(t, (&MediaSource{AllowPrivate: true}).admit("tcp", net.JoinHostPort(address, "443"), nil))
	}
	if err := (&MediaSource{}).admit("unix", "/run/socket", nil); err == nil {
		t.Error("an address that is none was admitted")
	}
}

// TestLaneMediaTroubles: no post is begun before its media are at X.
func TestLaneMediaTroubles(t *testing.T) {
	t.Parallel()
	upload := func(f xsim.Fault) xsim.Fault { f.Endpoint = xsim.EndpointUpload; return f }
	tests := []struct {
		name  string
		fault xsim.Fault
		media jetpost.Media
		state jetpost.State
		code  jetpost.Code
	}{
		{"alternative text fails", xsim.Fault{Kind: xsim.FaultStatus, Status: 503, Endpoint: xsim.EndpointMetadata}, jetpost.Media{Alt: "x"}, jetpost.StateHeld, jetpost.CodeXUnavailable},
		{"answer lost", upload(xsim.Fault{Kind: xsim.FaultCut, After: true}), jetpost.Media{}, jetpost.StateHeld, jetpost.CodeXUnavailable},
		{"limited", upload(xsim.Fault{Kind: xsim.FaultStatus, Status: 429}), jetpost.Media{}, jetpost.StateHeld, jetpost.CodeRateLimited},
		{"object store away", xsim.Fault{}, jetpost.Media{Object: "x"}, jetpost.StateHeld, jetpost.CodeMediaUnavailable},
		{"outage", upload(xsim.Fault{Kind: xsim.FaultOutage}), jetpost.Media{}, jetpost.StateHeld, jetpost.CodeXUnavailable},
		{"refused", upload(xsim.Fault{Kind: xsim.FaultStatus, Status: 400}), jetpost.Media{}, jetpost.StateFailed, jetpost.CodeRefusedByX},
		{"unauthorized", upload(xsim.Fault{Kind: xsim.FaultStatus, Status: 401}), jetpost.Media{}, jetpost.StateHeld, jetpost.CodeXUnavailable},
		{"wrong type", xsim.Fault{}, jetpost.Media{Data: []byte("GIF89a......")}, jetpost.StateFailed, jetpost.CodeMediaInvalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			if test.fault.Kind != "" {
				b.faults(t, test.fault)
			}
			if test.media.Object == "" && test.media.Data == nil {
				test.media.Data = picture(t)
			}
			key := b.accept(t, jetpost.Request{ID: "thread", Posts: []jetpost.Post{{Text: "one"}, {Text: "two", Media: []jetpost.Media{test.media}}}})
			h := b.lane(func(h *PublishHandler) { h.Media = &MediaSource{Objects: awayObjects{}} })
			b.run(t, h, "acme")
			r := b.want(t, key, test.state, test.code, 1)
			equal(t, "second post", r.Posts[1].State, jetpost.PostPending)
			equal(t, "attempts", r.Status.Attempts, 1)
			equal(t, "posts", len(b.x.Posts("acme")), 1)
		})
	}
}

// awayObjects is an object store that does not answer.
type awayObjects struct{ jetstream.ObjectStore }

func (awayObjects) Get(context.Context, string, ...jetstream.GetObjectOpt) (jetstream.ObjectResult, error) {
	return nil, errAway
}

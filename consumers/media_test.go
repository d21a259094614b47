package consumers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// testImage is a PNG that X accepts.
func testImage(t *testing.T) []byte {
	t.Helper()
	var buf bytes.Buffer
	testkit.Must(t, png.Encode(&buf, image.NewGray(image.Rect(0, 0, 8, 8))))
	return buf.Bytes()
}

// website serves media over TLS on a loopback address.
func website(t *testing.T, address string, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(address, "0"))
	testkit.Must(t, err)
	testkit.Must(t, s.Listener.Close())
	s.Listener = l
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}

// trusting is a source that trusts the certificate of website.
func trusting(s *httptest.Server) *mediaSource {
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return &mediaSource{internet: internet{roots: roots, Private: loopback}}
}

// TestMediaReachesX posts one image from each kind of source.
func TestMediaReachesX(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	data := testImage(t)
	object, err := b.pub.PutMedia(t.Context(), bytes.NewReader(data))
	testkit.Must(t, err)
	site := website(t, "127.0.0.1", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html") // it is not trusted
		_, _ = w.Write(data)
	})
	source := trusting(site)
	source.Objects = b.media.Objects
	b.media = source
	key := b.accept(t, jetpost.Request{ID: "one", Posts: []jetpost.Post{
		{Text: "one", Media: []jetpost.Media{{Data: data, Alt: "a grey square"}, {Object: object}}},
		{Media: []jetpost.Media{{URL: site.URL + "/image"}}},
	}})
	b.run(t, b.lane(), "acme")
	b.want(t, key, jetpost.StatePublished, "", 2)
	media := map[string]xsim.Media{}
	for _, m := range b.x.Media("acme") {
		media[m.ID] = m
	}
	testkit.Equal(t, "uploads", len(media), 3)
	posts := b.x.Posts("acme")
	testkit.Equal(t, "media of the posts", fmt.Sprint(len(posts[0].MediaIDs), len(posts[1].MediaIDs)), "2 1")
	testkit.Equal(t, "alternative text", media[posts[0].MediaIDs[0]].AltText, "a grey square")
	testkit.Equal(t, "alternative text of another one", media[posts[0].MediaIDs[1]].AltText, "")
	testkit.Equal(t, "digest", media[posts[1].MediaIDs[0]].SHA256, fmt.Sprintf("%x", sha256.Sum256(data)))
}

// What becomes of media that a source is asked for.
const (
	mediaFine  = iota
	mediaGone  // it will not come
	mediaLater // it may come at another time
	mediaWhole // it comes, as large as can be
)

type mediaCase struct {
	name  string
	media jetpost.Media
	want  int
}

// opens asks the source for the media of each case. That which comes is data.
func (s *mediaSource) opens(t *testing.T, data []byte, cases []mediaCase) {
	t.Helper()
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := s.Open(t.Context(), test.media, "")
			var fault *mediaError
			switch {
			case test.want == mediaWhole:
				testkit.Must(t, err)
				testkit.Equal(t, "size", got.size, xapi.MaxImageBytes)
				testkit.Must(t, got.Close())
			case test.want != mediaFine && (!errors.As(err, &fault) || (fault.code == jetpost.CodeMediaInvalid) != (test.want == mediaGone)):
				t.Errorf("error is %v (%+v)", err, fault)
			case test.want != mediaFine && strings.Contains(err.Error(), "secret"):
				t.Errorf("error tells a secret: %v", err)
			case test.want == mediaFine:
				testkit.Must(t, err)
				bytes, err := io.ReadAll(got.reader())
				testkit.Must(t, errors.Join(err, got.Close()))
				testkit.Equal(t, "type", got.mime, "image/png")
				testkit.Equal(t, "bytes", string(bytes), string(data))
				testkit.Equal(t, "size", got.size, int64(len(data)))
				testkit.Equal(t, "digest", got.digest, fmt.Sprintf("%x", sha256.Sum256(data)))
			}
		})
	}
}

func TestMediaOfData(t *testing.T) {
	t.Parallel()
	data := testImage(t)
	new(mediaSource).opens(t, data, []mediaCase{
		{"data", jetpost.Media{Data: data}, mediaFine},
		{"data empty", jetpost.Media{}, mediaGone},
		{"data of a bitmap", jetpost.Media{Data: []byte("BM..............")}, mediaGone},
		{"data of an image that X does not accept", jetpost.Media{Data: []byte("....ftypavif....")}, mediaGone},
		{"data of text", jetpost.Media{Data: []byte("<html>")}, mediaGone},
	})
}

// padded is data with zero bytes up to a size.
func padded(data []byte, size int64) []byte {
	return append(bytes.Clone(data), make([]byte, size-int64(len(data)))...)
}

func TestMediaOfObject(t *testing.T) {
	t.Parallel()
	b := setup(t)
	put := func(data []byte) jetpost.Media {
		object, err := b.pub.PutMedia(t.Context(), bytes.NewReader(data))
		testkit.Must(t, err)
		return jetpost.Media{Object: object}
	}
	data := testImage(t)
	other, err := b.js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: "other"})
	testkit.Must(t, err)
	_, err = other.PutBytes(t.Context(), "private", data)
	testkit.Must(t, err)
	removed := put(append(bytes.Clone(data), 1))
	testkit.Must(t, b.media.Objects.Delete(t.Context(), removed.Object))
	b.media.opens(t, data, []mediaCase{
		{"object", put(data), mediaFine},
		{"object missing", jetpost.Media{Object: "none"}, mediaGone},
		{"object deleted", removed, mediaGone},
		{"object is a link", b.mediaLink(t, "link", b.names.MediaBucket(), put(data).Object), mediaGone},
		{"object is a link elsewhere", b.mediaLink(t, "elsewhere", "other", "private"), mediaGone},
		{"object is a link to itself", b.mediaLink(t, "itself", b.names.MediaBucket(), "itself"), mediaGone},
		{"object as large as can be", put(padded(data, xapi.MaxImageBytes)), mediaWhole},
		{"object too large", put(padded(data, xapi.MaxImageBytes+int64(len(data)))), mediaGone},
	})
}

// mediaLink stores a link to an object, as a malicious client does: the usual clients refuse
// some of these.
func (b *testBundle) mediaLink(t *testing.T, name, bucket, target string) jetpost.Media {
	t.Helper()
	info := jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{Name: name, Opts: &jetstream.ObjectMetaOptions{Link: &jetstream.ObjectLink{Bucket: bucket, Name: target}}},
		Bucket:     b.names.MediaBucket(), NUID: name,
	}
	body, err := json.Marshal(info)
	testkit.Must(t, err)
	_, err = b.js.Publish(t.Context(), "$O."+b.names.MediaBucket()+".M."+base64.URLEncoding.EncodeToString([]byte(name)), body)
	testkit.Must(t, err)
	return jetpost.Media{Object: name}
}

func TestMediaOfURL(t *testing.T) {
	t.Parallel()
	data := testImage(t)
	site := mediaSite(t, data)
	source := trusting(site)
	url := func(path string) jetpost.Media { return jetpost.Media{URL: site.URL + path + "?signature=secret"} }
	source.opens(t, data, []mediaCase{
		{"url", url("/x"), mediaFine},
		{"url empty", url("/empty"), mediaGone},
		{"url redirects nowhere", url("/bad-redirect"), mediaLater},
		{"url cut", url("/cut"), mediaLater},
		{"url fails", url("/500"), mediaLater},
		{"url gone", url("/404"), mediaGone},
		{"url limited", url("/429"), mediaLater},
		{"url nobody listens", jetpost.Media{URL: "https://127.0.0.1:1/x?signature=secret"}, mediaLater},
		{"url redirects thrice", url("/r3"), mediaFine},
		{"url redirects too often", url("/r4"), mediaGone},
		{"url too large", url("/large"), mediaGone},
	})
	t.Run("empty says so", func(t *testing.T) {
		t.Parallel()
		if _, err := source.Open(t.Context(), url("/empty"), ""); err == nil || !strings.Contains(err.Error(), "empty") {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("url leaves https", func(t *testing.T) {
		t.Parallel()
		var fault *mediaError
		if _, err := source.Open(t.Context(), url("/http"), ""); !errors.Is(err, errRedirect) || !errors.As(err, &fault) || fault.code == "" {
			t.Errorf("error is %v", err)
		}
	})
}

// mediaSite serves data, and every fault on the way to it.
func mediaSite(t *testing.T, data []byte) (site *httptest.Server) {
	t.Helper()
	large := padded(data, xapi.MaxImageBytes+int64(len(data)))
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
		case "/bad-redirect":
			w.Header().Set("Location", "https://127.0.0.1:bad/?other=secret")
			w.WriteHeader(http.StatusFound)
		case "/empty":
		case "/large":
			_, _ = w.Write(large)
		case "/r1", "/r2", "/r3", "/r4":
			http.Redirect(w, r, "/r"+string(path[2]-1), http.StatusFound)
		case "/http":
			http.Redirect(w, r, strings.Replace(site.URL, "https", "http", 1), http.StatusFound)
		default: // /r0, too
			if from := r.Referer(); from != "" {
				http.Error(w, from, http.StatusForbidden) // the error has no query
				return
			}
			if r.Header.Get("Accept-Encoding") != "" {
				w.Header().Set("Content-Encoding", "gzip") // with another digest
			}
			_, _ = w.Write(data)
		}
	})
	return site
}

// TestMediaPrivateAddress: no private address is reached, whatever name points to it,
// neither directly nor by a redirect.
func TestMediaPrivateAddress(t *testing.T) {
	t.Parallel()
	reached := make(chan string, 10)
	inside := website(t, "127.0.0.2", func(_ http.ResponseWriter, r *http.Request) { reached <- r.URL.Path })
	outside := website(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, inside.URL+"/by-redirect", http.StatusFound)
	})
	source := trusting(outside)
	source.Private = nil
	_, port, err := net.SplitHostPort(outside.Listener.Addr().String())
	testkit.Must(t, err)
	refused := func(url string) {
		t.Helper()
		_, err := source.Open(t.Context(), jetpost.Media{URL: url}, "")
		var fault *mediaError
		if !errors.Is(err, errPrivate) || !errors.As(err, &fault) || fault.code != jetpost.CodeMediaInvalid {
			t.Errorf("%s: error is %v", url, err)
		}
	}
	refused("https://localhost:" + port) // known only after the name is resolved
	refused(outside.URL)
	source.Private = loopback
	refused(outside.URL)
	select {
	case path := <-reached:
		t.Errorf("%s was fetched", path)
	default:
	}
}

// connectProxy is a proxy at an address that no medium may have. It connects to one host,
// refuses others, refuses all with a status other than 200, and records the requested
// hosts.
func connectProxy(t *testing.T, host string, status int) (address *url.URL, asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var hosts []string
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		hosts = append(hosts, r.Method+" "+r.Host)
		mu.Unlock()
		if status != http.StatusOK || r.Host != host {
			w.WriteHeader(max(status, http.StatusForbidden))
			return
		}
		there, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer func() { _ = there.Close() }()
		here, read, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n") // the client sends nothing before
		go func() { _, _ = io.Copy(there, read) }()
		_, _ = io.Copy(here, there)
		_ = here.Close()
	}))
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.3:0")
	testkit.Must(t, err)
	testkit.Must(t, s.Listener.Close())
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	address, err = url.Parse(s.URL)
	testkit.Must(t, err)
	return address, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(hosts)
	}
}

// TestMediaThroughProxy: a proxy may have any address, but the requested hosts may not.
func TestMediaThroughProxy(t *testing.T) {
	t.Parallel()
	data := testImage(t)
	site := website(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/inside" {
			http.Redirect(w, r, "https://10.0.0.1/by-redirect", http.StatusFound)
			return
		}
		_, _ = w.Write(data)
	})
	host := site.Listener.Addr().String()
	_, port, err := net.SplitHostPort(host)
	testkit.Must(t, err)
	away := &url.URL{Scheme: "http", Host: "127.0.0.3:1"}
	open := func(proxy *url.URL, address string) *mediaError {
		source := trusting(site)
		source.proxy = http.ProxyURL(proxy)
		b, err := source.Open(t.Context(), jetpost.Media{URL: address}, "")
		var fault *mediaError
		if err == nil {
			testkit.Equal(t, "bytes", b.size, int64(len(data)))
			testkit.Must(t, b.Close())
		} else if !errors.As(err, &fault) {
			t.Errorf("%s: error is %v", address, err)
		}
		return fault
	}

	proxy, asked := connectProxy(t, host, http.StatusOK)
	if fault := open(proxy, site.URL); fault != nil {
		t.Errorf("through the proxy: %v", fault)
	}
	testkit.Equal(t, "asked", fmt.Sprint(asked()), "[CONNECT "+host+"]")
	for _, private := range []string{"https://10.0.0.1/", "https://[fd12::1]/", "https://169.254.169.254/latest", "https://127.0.0.2:" + port, "https://" + proxy.Host, site.URL + "/inside"} {
		fault := open(proxy, private)
		if fault == nil || !errors.Is(fault, errPrivate) || fault.code != jetpost.CodeMediaInvalid {
			t.Errorf("%s: error is %v", private, fault)
		}
	}
	testkit.Equal(t, "asked", fmt.Sprint(asked()), "[CONNECT "+host+" CONNECT "+host+"]")
	if err := (&mediaSource{}).admitName(t.Context(), "localhost"); !errors.Is(err, errPrivate) {
		t.Errorf("localhost: error is %v", err)
	}

	refusing, _ := connectProxy(t, host, http.StatusForbidden)
	for proxy, want := range map[*url.URL]string{refusing: "proxy " + refusing.Host + " does not connect to " + host + ": 403 Forbidden", away: "proxyconnect"} {
		fault := open(proxy, site.URL)
		if fault == nil || fault.code != "" || !strings.Contains(fault.Error(), want) {
			t.Errorf("error is %v, want %q in it", fault, want)
		}
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
		"::ffff:0:7f00:1": false, "64:ff9b::7f00:1%1": false, "2002:7f00:1::%lo": false, "fd12::1%lo": false, "::127.0.0.1%lo": false,
		"fc00::1": false, "fd12::1": false, "fe80::1": false, "fec0::1": false, "ff02::1": false,
	} {
		err := (&mediaSource{}).admit("tcp", net.JoinHostPort(address, "443"), nil)
		testkit.Equal(t, address, err == nil, want)
	}
	within := &internet{Private: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd12::/16")}}
	for address, want := range map[string]bool{"10.1.2.3:443": true, "10.2.0.1:443": false, "[fd12::1]:443": true, "[::ffff:10.1.0.1]:443": true, "127.0.0.1:443": false} {
		testkit.Equal(t, address+" beside what is allowed", within.admit("tcp", address, nil) == nil, want)
	}
	if err := (&mediaSource{}).admit("unix", "/run/socket", nil); err == nil {
		t.Error("an address that is none was admitted")
	}
}

func TestMediaType(t *testing.T) {
	t.Parallel()
	for head, want := range map[string]string{
		"....ftypqt  ....": "video/quicktime", "....ftypisom....": "video/mp4", "....ftypM4V ....": "video/mp4", "....ftypM4A ....": "audio/mp4",
		"....ftypheic....": "image/heic", "....ftyphevx....": "image/hevx",
		"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm": "video/webm", "\x1a\x45\xdf\xa3\x9f\x42\x82\x88matroska": "video/x-matroska",
		gifHead: "image/gif", "\x89PNG\x0d\x0a\x1a\x0a": "image/png", "\xff\xd8\xff": "image/jpeg", "RIFF....WEBPVP": "image/webp", "RIFF....AVI ": "video/avi",
	} {
		testkit.Equal(t, fmt.Sprintf("type of %q", head), xapi.MediaType([]byte(head)), want)
	}
}

// TestMediaPace: a source gets time while it delivers data, and the read ends if it does
// not.
func TestMediaPace(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name         string
		every        time.Duration // the interval of the pieces
		pieces, size int
		slow         bool
	}{
		{name: "minutes", every: 10 * time.Second, pieces: 20, size: 10 * slowestFetch},
		{name: "a long silence", every: fetchTimeout - time.Second, pieces: 1, size: 1000},
		{name: "never", every: time.Hour, pieces: 1, size: 1000, slow: true},
		{name: "drop by drop", every: 10 * time.Second, pieces: 20, size: slowestFetch, slow: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				source := &mediaSource{Objects: &slowObjects{every: test.every, pieces: test.pieces, size: test.size}}
				began := time.Now()
				b, err := source.Open(t.Context(), jetpost.Media{Object: "x"}, "")
				if test.slow {
					var fault *mediaError
					if !errors.Is(err, errSlow) || !errors.As(err, &fault) || fault.code != "" {
						t.Errorf("error is %v", err)
					}
					if waited := time.Since(began); waited < fetchTimeout || waited > 2*fetchTimeout {
						t.Errorf("waited %s", waited)
					}
					return
				}
				testkit.Must(t, err)
				testkit.Equal(t, "size", b.size, int64(test.pieces*test.size))
				testkit.Must(t, b.Close())
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // the read also ends with its context
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		source := &mediaSource{Objects: &slowObjects{every: time.Hour, pieces: 1, size: 1}}
		began := time.Now()
		if _, err := source.Open(ctx, jetpost.Media{Object: "x"}, ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
		if waited := time.Since(began); waited > 10*time.Second {
			t.Errorf("waited %s", waited)
		}
	})
}

// slowObjects delivers a video piece by piece, and as the object store does it: only the
// deadline of its context ends a read.
type slowObjects struct {
	jetstream.ObjectStore
	every        time.Duration
	pieces, size int
}

func (*slowObjects) GetInfo(context.Context, string, ...jetstream.GetObjectInfoOpt) (*jetstream.ObjectInfo, error) {
	return &jetstream.ObjectInfo{}, nil
}

func (o *slowObjects) Get(ctx context.Context, _ string, _ ...jetstream.GetObjectOpt) (jetstream.ObjectResult, error) {
	cancel := func() {}
	if _, ok := ctx.Deadline(); !ok {
		ctx, cancel = context.WithTimeout(ctx, 5*time.Second)
	}
	r, w := net.Pipe()
	go func() {
		defer cancel()
		defer w.Close()
		data := file(mp4Head, o.pieces*o.size)
		for range o.pieces {
			select {
			case <-ctx.Done():
				return
			case <-time.After(o.every):
			}
			if _, err := w.Write(data[:o.size]); err != nil {
				return
			}
			data = data[o.size:]
		}
	}()
	return &slowObject{ctx: ctx, r: r}, nil
}

type slowObject struct {
	jetstream.ObjectResult
	ctx context.Context
	r   net.Conn
}

func (o *slowObject) Read(b []byte) (int, error) {
	until, _ := o.ctx.Deadline()
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	_ = o.r.SetReadDeadline(until)
	return o.r.Read(b)
}

func (o *slowObject) Close() error { return o.r.Close() }

// TestLaneMediaTroubles: no post begins before its media are uploaded, and no thread before
// all its media were read and its small images are uploaded.
func TestLaneMediaTroubles(t *testing.T) {
	t.Parallel()
	upload := func(f xsim.Fault) xsim.Fault { f.Endpoint = xsim.EndpointUpload; return f }
	tests := []struct {
		name  string
		fault xsim.Fault
		media jetpost.Media
		state jetpost.State
		code  jetpost.Code
		live  int // posts of the thread, before it ended
	}{
		{"alternative text fails", xsim.Fault{Kind: xsim.FaultStatus, Status: 503, Endpoint: xsim.EndpointMetadata}, jetpost.Media{Alt: "x"}, jetpost.StateHeld, jetpost.CodeXUnavailable, 0},
		{"answer lost", upload(xsim.Fault{Kind: xsim.FaultCut, After: true}), jetpost.Media{}, jetpost.StateHeld, jetpost.CodeXUnavailable, 0},
		{"limited", upload(xsim.Fault{Kind: xsim.FaultStatus, Status: 429}), jetpost.Media{}, jetpost.StateHeld, jetpost.CodeRateLimited, 0},
		{"object store away", xsim.Fault{}, jetpost.Media{Object: "x"}, jetpost.StateHeld, jetpost.CodeMediaUnavailable, 0},
		{"outage", upload(xsim.Fault{Kind: xsim.FaultOutage}), jetpost.Media{}, jetpost.StateHeld, jetpost.CodeXUnavailable, 0},
		{"refused", upload(xsim.Fault{Kind: xsim.FaultStatus, Status: 400}), jetpost.Media{}, jetpost.StateFailed, jetpost.CodeRefusedByX, 0},
		{"unauthorized", upload(xsim.Fault{Kind: xsim.FaultStatus, Status: 401}), jetpost.Media{}, jetpost.StateHeld, jetpost.CodeXUnavailable, 0},
		{"wrong type", xsim.Fault{}, jetpost.Media{Data: []byte("<html>")}, jetpost.StateFailed, jetpost.CodeMediaInvalid, 0},
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
				test.media.Data = testImage(t)
			}
			key := b.accept(t, jetpost.Request{ID: "thread", Posts: []jetpost.Post{{Text: "one"}, {Text: "two", Media: []jetpost.Media{test.media}}}})
			h := b.lane(func(h *publishHandler) { h.Media = &mediaSource{Objects: awayObjects{}} })
			b.run(t, h, "acme")
			r := b.want(t, key, test.state, test.code, test.live)
			testkit.Equal(t, "second post", r.Posts[1].State, jetpost.PostPending)
			testkit.Equal(t, "attempts", r.Status.Attempts, test.live)
			testkit.Equal(t, "posts", len(b.x.Posts("acme")), test.live)
		})
	}
}

// awayObjects is an object store that does not answer.
type awayObjects struct{ jetstream.ObjectStore }

func (awayObjects) GetInfo(context.Context, string, ...jetstream.GetObjectInfoOpt) (*jetstream.ObjectInfo, error) {
	return nil, errAway
}

// TestMediaSpool: the media of one worker do not fill the disk. Media without room are
// tried again. After a medium is read, it takes only its size, until it is closed.
func TestMediaSpool(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		source := &mediaSource{Objects: &slowObjects{every: time.Second, pieces: 2, size: 1000}}
		const fit = spoolMax / xapi.MaxVideoBytes
		var read, refused atomic.Int64
		var all sync.WaitGroup
		for range fit + 2 {
			all.Go(func() {
				b, err := source.Open(t.Context(), jetpost.Media{Object: "x"}, "")
				var fault *mediaError
				switch {
				case err == nil:
					read.Add(1)
					defer func() { testkit.Must(t, b.Close()) }()
				case errors.As(err, &fault) && fault.code == "" && strings.Contains(err.Error(), "2048 MiB"):
					refused.Add(1)
				default:
					t.Errorf("error is %v", err)
				}
			})
		}
		all.Wait()
		testkit.Equal(t, "read", read.Load(), fit)
		testkit.Equal(t, "refused", refused.Load(), 2)
		testkit.Equal(t, "left", source.spooled.Load(), 0)
		b, err := source.Open(t.Context(), jetpost.Media{Object: "x"}, "")
		testkit.Must(t, err)
		testkit.Equal(t, "taken once it is read", source.spooled.Load(), 2000)
		testkit.Must(t, b.Close())
	})
}

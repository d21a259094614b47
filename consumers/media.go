package consumers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// fetchTimeout bounds the wait for the first byte of a media source, and
	// slowestFetch, in bytes a second, what follows.
	fetchTimeout = 30 * time.Second
	slowestFetch = 64 << 10
	// fetchRedirects bounds the redirects of one fetch.
	fetchRedirects = 3
	// spoolMax is how many bytes of media one worker keeps on its disk at once: some of
	// the largest videos. It leaves room for the database and the lifeboat beside it.
	spoolMax = 2 << 30
)

// MediaSource reads media from where a request names it. Bytes reach X as they
// are; their type is told by what they hold, never by a name or a header.
type MediaSource struct {
	// Objects is the media object store.
	Objects jetstream.ObjectStore
	// Allow are private networks that urls may reach all the same. It is for tests
	// and trusted installations: any producer can name any url.
	Allow []netip.Prefix

	roots *x509.CertPool                        // trusted instead of the system's, in tests
	proxy func(*http.Request) (*url.URL, error) // http.ProxyFromEnvironment where nil

	spooled atomic.Int64 // bytes that are taken of spoolMax

	once    sync.Once
	uploads *semaphore.Weighted // see budget
}

// budget is what the images that are on their way to X have together, in bytes.
func (s *MediaSource) budget() *semaphore.Weighted {
	s.once.Do(func() { s.uploads = semaphore.NewWeighted(uploadBytes) })
	return s.uploads
}

// share is a medium's part of spoolMax.
type share struct {
	*os.File
	spooled *atomic.Int64
	bytes   int64
}

// take sets bytes aside before they are read, so that of several media at least one gets
// to its end.
func (f *share) take(bytes int64) error {
	if used := f.spooled.Add(bytes); used > spoolMax {
		f.spooled.Add(-bytes)
		return &mediaError{err: fmt.Errorf("the media of other accounts use %d MiB of this worker's disk, and with %d MiB more it were more than %d MiB",
			(used-bytes)>>20, bytes>>20, spoolMax>>20)}
	}
	f.bytes = bytes
	return nil
}

// shrink gives back what is not needed.
func (f *share) shrink(to int64) {
	f.spooled.Add(to - f.bytes)
	f.bytes = to
}

// Close gives back all.
func (f *share) Close() error {
	f.shrink(0)
	return f.File.Close()
}

// blob is one media, read whole: in memory where it came with the request, else in
// a file without a name, that is gone with its last reader.
type blob struct {
	io.ReaderAt
	io.Closer
	size   int64
	mime   string
	digest string // SHA-256, in hex
}

func (b *blob) reader() io.Reader { return io.NewSectionReader(b, 0, b.size) }

// mediaError says why a media cannot be had.
type mediaError struct {
	code jetpost.Code // of a failure that waiting does not help; else ""
	err  error
}

func (e *mediaError) Error() string { return e.err.Error() }
func (e *mediaError) Unwrap() error { return e.err }

// invalidMedia is a file that X does not take, whenever it is read.
func invalidMedia(format string, args ...any) *mediaError {
	return &mediaError{code: jetpost.CodeMediaInvalid, err: fmt.Errorf(format, args...)}
}

// Pin returns the digests of the media that a request names and others could
// replace before they are read: what is posted is what there was as the request was
// accepted. A url is pinned when it is first read.
func (s *MediaSource) Pin(ctx context.Context, request jetpost.Request) ([][]store.Media, error) {
	pins := make([][]store.Media, len(request.Posts))
	for i, p := range request.Posts {
		for n, m := range p.Media {
			if m.Object == "" {
				continue
			}
			bounded, cancel := context.WithTimeout(ctx, pinWithin)
			info, err := s.Objects.GetInfo(bounded, m.Object)
			cancel()
			if errors.Is(err, jetstream.ErrObjectNotFound) {
				continue // it may come in time
			}
			if err != nil {
				return nil, fmt.Errorf("look up media object %q: %w", m.Object, err)
			}
			if pins[i] == nil {
				pins[i] = make([]store.Media, len(p.Media))
			}
			pins[i][n].Digest = objectDigest(info)
		}
	}
	return pins, nil
}

// objectDigest brings an object's own digest into our form; "" if it has none.
func objectDigest(info *jetstream.ObjectInfo) string {
	sum, err := base64.URLEncoding.DecodeString(strings.TrimPrefix(info.Digest, "SHA-256="))
	if err != nil {
		return ""
	}
	return hex.EncodeToString(sum)
}

// Open reads one media, whose bytes must have the digest if it is known. Its error
// is a *mediaError.
func (s *MediaSource) Open(ctx context.Context, m jetpost.Media, digest string) (*blob, error) {
	b, err := s.read(ctx, m)
	if err != nil {
		return nil, err
	}
	if digest != "" && digest != b.digest {
		_ = b.Close()
		return nil, &mediaError{code: jetpost.CodeMediaChanged, err: fmt.Errorf("it has other bytes than before: SHA-256 %s, was %s", b.digest, digest)}
	}
	return b, nil
}

func (s *MediaSource) read(ctx context.Context, m jetpost.Media) (*blob, error) {
	if m.URL == "" && m.Object == "" {
		b := &blob{ReaderAt: bytes.NewReader(m.Data), Closer: io.NopCloser(nil)}
		return b, b.fill(bytes.NewReader(m.Data), io.Discard, func(int64) (int64, error) { return int64(len(m.Data)), nil })
	}
	p := startPace(ctx)
	defer p.end()
	if m.URL != "" {
		return s.fetch(p, m.URL)
	}
	return s.object(p, m.Object)
}

// object reads from the object store. A link is not followed: it can lead to any
// bucket that the worker may read, or to itself.
func (s *MediaSource) object(p *pace, name string) (*blob, error) {
	info, err := s.Objects.GetInfo(p.ctx, name)
	var object jetstream.ObjectResult
	if err == nil {
		if info.Opts != nil && info.Opts.Link != nil {
			return nil, invalidMedia("media object %q is a link; put the file itself there", name)
		}
		object, err = s.Objects.Get(untimed{p.ctx}, name)
	}
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return nil, invalidMedia("no media object %q is there", name)
	case err != nil:
		return nil, &mediaError{err: fmt.Errorf("read media object %q: %w", name, err)}
	}
	defer func() { _ = object.Close() }() // only read from
	return s.spool(p.reader(object), int64(min(info.Size, math.MaxInt64)))
}

// untimed keeps the object store from giving up a whole object after the few seconds
// of its default. Each of its reads lasts for a moment at most, since nothing else
// interrupts one.
type untimed struct{ context.Context }

func (untimed) Deadline() (time.Time, bool) { return time.Now().Add(time.Second), true }

// spool reads a media into a file without a name. It is told the size, 0 or less where
// nobody knows it.
func (s *MediaSource) spool(r io.Reader, size int64) (*blob, error) {
	file, err := os.CreateTemp("", "jetpost-media-*")
	if err != nil {
		return nil, &mediaError{err: fmt.Errorf("make room for media: %w", err)}
	}
	_ = os.Remove(file.Name()) // where an open file cannot be removed, it stays
	room := &share{File: file, spooled: &s.spooled}
	b := &blob{ReaderAt: file, Closer: room}
	err = b.fill(r, file, func(limit int64) (int64, error) {
		if size > 0 {
			limit = min(limit, size)
		}
		return limit, room.take(limit)
	})
	if err != nil {
		_ = room.Close()
		return nil, err
	}
	room.shrink(b.size)
	return b, nil
}

// fill reads what r has into w, and tells its size, type and digest. It stops where
// X would not take it, or where there is more than take has made room for.
func (b *blob) fill(r io.Reader, w io.Writer, take func(limit int64) (int64, error)) error {
	head := make([]byte, xapi.SniffBytes)
	n, err := io.ReadFull(r, head)
	head = head[:n]
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return &mediaError{err: fmt.Errorf("read media: %w", err)}
	}
	if n == 0 {
		return invalidMedia("it is empty")
	}
	b.mime = xapi.MediaType(head)
	limit := xapi.MediaLimit(b.mime)
	if limit == 0 {
		return invalidMedia("it is %s; X takes %s", b.mime, xapi.MediaKinds)
	}
	room, err := take(limit)
	if err != nil {
		return err
	}
	sum := sha256.New()
	whole := io.LimitReader(io.MultiReader(bytes.NewReader(head), r), room+1)
	b.size, err = io.Copy(io.MultiWriter(w, sum), whole)
	switch {
	case err != nil:
		return &mediaError{err: fmt.Errorf("read media: %w", err)}
	case b.size > limit:
		return invalidMedia("it is larger than the %d bytes that X takes of %s", limit, b.mime)
	case b.size > room:
		return invalidMedia("it is larger than the %d bytes that its source told", room)
	}
	b.digest = hex.EncodeToString(sum.Sum(nil))
	if xapi.IsImage(b.mime) {
		all, err := io.ReadAll(b.reader())
		if err != nil {
			return &mediaError{err: fmt.Errorf("read media: %w", err)}
		}
		if cutOff(b.mime, all) {
			return invalidMedia("it is cut off: a file of %s with %d bytes and no end", b.mime, b.size)
		}
	}
	return nil
}

// cutOff tells an image that lacks its end. What stands behind the end is the file's own
// business: cameras and editors put much there. A file that it cannot follow is X's to judge.
func cutOff(mime string, file []byte) bool {
	switch mime {
	case "image/png":
		return !bytes.Contains(file, []byte("IEND\xaeB`\x82"))
	case "image/jpeg":
		scan := jpegScan(file)
		return scan > 0 && !bytes.Contains(file[scan:], []byte("\xff\xd9"))
	case "image/webp":
		return len(file) >= 8 && int64(binary.LittleEndian.Uint32(file[4:]))+8 > int64(len(file))
	}
	return false
}

// jpegScan is where the image itself begins, behind a preview that has an end of its own;
// 0 where that is not found, and the length where the file ends before.
func jpegScan(file []byte) int {
	const startOfScan = 0xda
	for at := 2; ; {
		switch {
		case at+4 > len(file):
			return len(file)
		case file[at] != 0xff:
			return 0
		case file[at+1] == startOfScan:
			return at
		}
		at += 2 + int(binary.BigEndian.Uint16(file[at+2:]))
	}
}

var (
	// errPrivate refuses an address inside somebody's network.
	errPrivate = errors.New("address is not public")
	// errRedirect refuses to go where an answer points.
	errRedirect = errors.New("redirect is not followed")
	// errSlow ends a fetch that takes too long.
	errSlow = fmt.Errorf("nothing for %s, or slower than %d KiB a second", fetchTimeout, slowestFetch>>10)
)

// fetch reads a url that a producer named, who is anybody: nothing but public addresses
// are reached.
func (s *MediaSource) fetch(p *pace, address string) (*blob, error) {
	client := &http.Client{Transport: roundTrip(s.roundTrip), CheckRedirect: follow}
	req, err := http.NewRequestWithContext(p.ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, invalidMedia("fetch media: %w", quiet{err})
	}
	resp, err := client.Do(req)
	if err != nil {
		fault := &mediaError{err: fmt.Errorf("fetch media: %w", quiet{p.cause(err)})}
		if errors.Is(err, errPrivate) || errors.Is(err, errRedirect) {
			fault.code = jetpost.CodeMediaInvalid
		}
		return nil, fault
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	if resp.StatusCode != http.StatusOK {
		fault := &mediaError{err: fmt.Errorf("fetch media from %s: %s", req.URL.Host, resp.Status)}
		if s := resp.StatusCode; s >= 400 && s < 500 && s != http.StatusTooManyRequests && s != http.StatusRequestTimeout {
			fault.code = jetpost.CodeMediaInvalid
		}
		return nil, fault
	}
	return s.spool(p.reader(resp.Body), resp.ContentLength)
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// roundTrip goes one step of a fetch. Without a proxy the address is checked after it was
// resolved, when the connection is made: a name that points inside, or begins to point
// there later, reaches nothing. A proxy resolves the name once more, so that its own rules
// have to guard against the latter.
func (s *MediaSource) roundTrip(req *http.Request) (*http.Response, error) {
	choose := s.proxy
	if choose == nil {
		choose = http.ProxyFromEnvironment
	}
	proxy, err := choose(req)
	if err != nil {
		return nil, fmt.Errorf("read the setting of the proxy: %w", err)
	}
	dialer := &net.Dialer{}
	transport := &http.Transport{
		DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS12},
	}
	if proxy == nil {
		dialer.Control = s.admit
		return transport.RoundTrip(req)
	}
	if err := s.admitName(req.Context(), req.URL.Hostname()); err != nil {
		return nil, err
	}
	transport.Proxy, transport.OnProxyConnectResponse = http.ProxyURL(proxy), xapi.ProxyAnswer
	return transport.RoundTrip(req)
}

// pace ends a read of which nothing comes for fetchTimeout, or less than
// slowestFetch.
type pace struct {
	ctx    context.Context // ends late, with errSlow for its cause
	cancel context.CancelCauseFunc
	late   *time.Timer
	r      io.Reader
	began  time.Time
	n      int64
}

func startPace(ctx context.Context) *pace {
	p := &pace{}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	p.late = time.AfterFunc(fetchTimeout, func() { p.cancel(errSlow) })
	return p
}

func (p *pace) end() {
	p.late.Stop()
	p.cancel(nil)
}

// cause is why a read failed.
func (p *pace) cause(err error) error {
	if cause := context.Cause(p.ctx); errors.Is(cause, errSlow) {
		return cause
	}
	return err
}

// reader reads what must come in time.
func (p *pace) reader(r io.Reader) io.Reader {
	p.r, p.began = r, time.Now()
	return p
}

func (p *pace) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	for errors.Is(err, os.ErrDeadlineExceeded) && n == 0 && p.ctx.Err() == nil { // see untimed
		n, err = p.r.Read(b)
	}
	p.n += int64(n)
	if err == nil {
		p.late.Reset(time.Until(p.began.Add(fetchTimeout + time.Duration(p.n/slowestFetch)*time.Second)))
	}
	if p.ctx.Err() != nil {
		err = p.cause(p.ctx.Err())
	}
	return n, err
}

// admit refuses to connect to anything but public addresses.
func (s *MediaSource) admit(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("read address %s: %w", address, err)
	}
	return s.public(addr.Addr())
}

// admitName refuses a name that has an address which is not public.
func (s *MediaSource) admitName(ctx context.Context, name string) error {
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return fmt.Errorf("resolve %s before the proxy does: %w", name, err)
	}
	for _, ip := range addresses {
		if err := s.public(ip); err != nil {
			return err
		}
	}
	return nil
}

func (s *MediaSource) public(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("") // no prefix contains an address with a zone
	for _, allowed := range s.Allow {
		if allowed.Contains(ip) {
			return nil
		}
	}
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || sharedRange(ip) {
		return fmt.Errorf("%s: %w", ip, errPrivate)
	}
	return nil
}

// sharedRange tells the ranges that netip does not count as private though
// they lead into somebody's network: carrier NAT, benchmarking, reserved, old
// site-local ones, and those that stand for an IPv4 address.
func sharedRange(ip netip.Addr) bool {
	for _, cidr := range [...]string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4",
		"::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fec0::/10",
	} {
		if netip.MustParsePrefix(cidr).Contains(ip) {
			return true
		}
	}
	return false
}

// follow bounds redirects and keeps them on https. Where a redirect leads, nobody
// learns the query of the url that led there.
func follow(req *http.Request, via []*http.Request) error {
	req.Header.Del("Referer")
	if len(via) > fetchRedirects {
		return fmt.Errorf("%w: more than %d", errRedirect, fetchRedirects)
	}
	if req.URL.Scheme != "https" {
		return fmt.Errorf("%w: it leaves https", errRedirect)
	}
	return nil
}

// quiet leaves the queries of urls out of an error's words: they may hold a
// signature.
type quiet struct{ error }

var queries = regexp.MustCompile(`[?#][^"]*`)

func (e quiet) Error() string { return queries.ReplaceAllString(e.error.Error(), "") }
func (e quiet) Unwrap() error { return e.error }

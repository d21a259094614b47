package consumers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// fetchTimeout bounds the wait for the first byte of a media source. slowestFetch is
	// the lowest average rate after that, in bytes per second.
	fetchTimeout = 30 * time.Second
	slowestFetch = 64 << 10
	// fetchRedirects bounds the redirects of one fetch.
	fetchRedirects = 3
	// spoolMax is how many bytes of media a worker may have on its disk at once: a few of
	// the largest videos. It leaves room for the database and the lifeboat.
	spoolMax = 2 << 30
)

// mediaSource reads the media that requests name. The bytes are sent to X unchanged. Their
// type is detected from the content, never from a name or a header.
type mediaSource struct {
	// Objects is the media object store.
	Objects jetstream.ObjectStore
	// internet is where urls are fetched from.
	internet

	spooled atomic.Int64 // bytes in use of spoolMax

	once    sync.Once
	uploads *semaphore.Weighted // see budget
}

// Spooled returns the bytes of media on this worker's disk.
func (s *mediaSource) Spooled() int64 { return s.spooled.Load() }

// budget limits the bytes of all images that are being uploaded to X.
func (s *mediaSource) budget() *semaphore.Weighted {
	s.once.Do(func() { s.uploads = semaphore.NewWeighted(uploadBytes) })
	return s.uploads
}

// share is a medium's part of spoolMax.
type share struct {
	*os.File
	spooled *atomic.Int64
	bytes   int64
}

// take reserves bytes before they are read, so that of several media at least one can be
// read completely.
func (f *share) take(bytes int64) error {
	if used := f.spooled.Add(bytes); used > spoolMax {
		f.spooled.Add(-bytes)
		return &mediaError{err: fmt.Errorf("the media of other accounts use %d MiB of this worker's disk, and %d MiB more are above the limit of %d MiB",
			(used-bytes)>>20, bytes>>20, spoolMax>>20)}
	}
	f.bytes = bytes
	return nil
}

// shrink releases the reserved bytes beyond a size.
func (f *share) shrink(to int64) {
	f.spooled.Add(to - f.bytes)
	f.bytes = to
}

// Close releases all reserved bytes and closes the file.
func (f *share) Close() error {
	f.shrink(0)
	return f.File.Close()
}

// blob is a medium that was read completely. It is in memory if it came with the request,
// else in a file that was already removed from its directory.
type blob struct {
	io.ReaderAt
	io.Closer
	size   int64
	mime   string
	digest string // SHA-256, in hex
}

func (b *blob) reader() io.Reader { return io.NewSectionReader(b, 0, b.size) }

// mediaError says why a medium cannot be read.
type mediaError struct {
	code jetpost.Code // of a permanent failure; else ""
	err  error
}

func (e *mediaError) Error() string { return e.err.Error() }
func (e *mediaError) Unwrap() error { return e.err }

// invalidMedia returns the error for a file that X does not accept.
func invalidMedia(format string, args ...any) *mediaError {
	return &mediaError{code: jetpost.CodeMediaInvalid, err: fmt.Errorf(format, args...)}
}

// Pin returns the digests of the media objects that a request names, so that the post has
// the bytes that were stored when the request was accepted. A url is pinned when it is first
// read.
func (s *mediaSource) Pin(ctx context.Context, request jetpost.Request) ([][]store.Media, error) {
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
				continue // it may be stored before the post is due
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

// objectDigest converts an object's digest to hex; "" if it has none.
func objectDigest(info *jetstream.ObjectInfo) string {
	sum, err := base64.URLEncoding.DecodeString(strings.TrimPrefix(info.Digest, "SHA-256="))
	if err != nil {
		return ""
	}
	return hex.EncodeToString(sum)
}

// Open reads one medium. If digest is not empty, the bytes must have it. The error is a
// *mediaError.
func (s *mediaSource) Open(ctx context.Context, m jetpost.Media, digest string) (*blob, error) {
	b, err := s.read(ctx, m)
	if err != nil {
		return nil, err
	}
	if digest != "" && digest != b.digest {
		_ = b.Close()
		return nil, &mediaError{code: jetpost.CodeMediaChanged, err: fmt.Errorf("its bytes have changed: SHA-256 %s, was %s", b.digest, digest)}
	}
	return b, nil
}

func (s *mediaSource) read(ctx context.Context, m jetpost.Media) (*blob, error) {
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

// object reads from the object store. A link is not followed, because it can lead to any
// bucket that the worker may read, or to itself.
func (s *mediaSource) object(p *pace, name string) (*blob, error) {
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
		return nil, invalidMedia("media object %q does not exist", name)
	case err != nil:
		return nil, &mediaError{err: fmt.Errorf("read media object %q: %w", name, err)}
	}
	defer func() { _ = object.Close() }() // only read from
	return s.spool(p.reader(object), int64(min(info.Size, math.MaxInt64)))
}

// untimed keeps the object store client from ending the read of an object after its default
// timeout of a few seconds. Each single read is limited to a second, because nothing else
// interrupts it.
type untimed struct{ context.Context }

func (untimed) Deadline() (time.Time, bool) { return time.Now().Add(time.Second), true }

// spool reads a medium into a file that it removes from its directory at once. size is the
// size that the source reported, 0 or less if it did not.
func (s *mediaSource) spool(r io.Reader, size int64) (*blob, error) {
	file, err := os.CreateTemp("", "jetpost-media-*")
	if err != nil {
		return nil, &mediaError{err: fmt.Errorf("make room for media: %w", err)}
	}
	_ = os.Remove(file.Name()) // a system that cannot remove an open file keeps it
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

// fill copies r to w, and sets size, type and digest. It fails if X does not accept the
// file, or if the file is larger than the room that take has reserved.
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
		return invalidMedia("it is larger than the %d bytes that its source reported", room)
	}
	b.digest = hex.EncodeToString(sum.Sum(nil))
	if xapi.IsImage(b.mime) {
		all, err := io.ReadAll(b.reader())
		if err != nil {
			return &mediaError{err: fmt.Errorf("read media: %w", err)}
		}
		if cutOff(b.mime, all) {
			return invalidMedia("it is truncated: a file of %s with %d bytes and no end", b.mime, b.size)
		}
	}
	return nil
}

// cutOff reports whether an image is truncated. Data behind the end is allowed, because
// cameras and editors append some. A file that cutOff cannot parse is left to X.
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

// jpegScan is the offset of the image data, behind a preview, which has its own end marker.
// It is 0 if the file cannot be parsed, and the length of the file if the file ends before.
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
	// errRedirect refuses a redirect.
	errRedirect = errors.New("redirect is not followed")
	// errSlow ends a fetch that takes too long.
	errSlow = fmt.Errorf("no data for %s, or slower than %d KiB a second", fetchTimeout, slowestFetch>>10)
)

// fetch reads a url that a producer named. Producers are not trusted, so only public
// addresses are reached, which guards against server-side request forgery (SSRF).
func (s *mediaSource) fetch(p *pace, address string) (*blob, error) {
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

// pace ends a read that delivers nothing for fetchTimeout, or less than slowestFetch.
type pace struct {
	ctx    context.Context // cancelled with the cause errSlow when the read is too slow
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

// cause returns errSlow if the read was too slow, and err otherwise.
func (p *pace) cause(err error) error {
	if cause := context.Cause(p.ctx); errors.Is(cause, errSlow) {
		return cause
	}
	return err
}

// reader returns r with the pace enforced.
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

// follow bounds redirects and keeps them on https. It removes the Referer, so that the
// target of a redirect does not learn the query of the url before.
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

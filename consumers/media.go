package consumers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// fetchTimeout bounds the fetch of one media url.
	fetchTimeout = 30 * time.Second
	// fetchRedirects bounds the redirects of one fetch.
	fetchRedirects = 3
)

// MediaSource reads media from where a request names it. Bytes reach X as they
// are; their type is told by what they hold, never by a name or a header.
type MediaSource struct {
	// Objects is the media object store.
	Objects jetstream.ObjectStore
	// AllowPrivate lets urls reach addresses of private networks. It is for
	// tests and trusted installations only: any producer can name any url.
	AllowPrivate bool

	// For tests, which have no server on the Internet.
	roots  *x509.CertPool // trusted instead of the system's
	public netip.Addr     // counts as public
}

// blob is one media, read whole.
type blob struct {
	data []byte
	mime string
}

func (b blob) reader() io.Reader { return bytes.NewReader(b.data) }

// mediaError says why a media cannot be had.
type mediaError struct {
	permanent bool // waiting does not help
	err       error
}

func (e *mediaError) Error() string { return e.err.Error() }
func (e *mediaError) Unwrap() error { return e.err }

// Open reads one media. Its error is a *mediaError.
func (s *MediaSource) Open(ctx context.Context, m jetpost.Media) (blob, error) {
	data, err := s.read(ctx, m)
	if err != nil {
		return blob{}, err
	}
	b := blob{data: data, mime: http.DetectContentType(data)}
	switch b.mime {
	case "image/jpeg", "image/png", "image/webp":
		return b, nil
	default:
		return blob{}, &mediaError{permanent: true, err: fmt.Errorf("media is %s; this version posts JPEG, PNG and WebP images", b.mime)}
	}
}

func (s *MediaSource) read(ctx context.Context, m jetpost.Media) ([]byte, error) {
	switch {
	case m.URL != "":
		return s.fetch(ctx, m.URL)
	case m.Object != "":
		return s.object(ctx, m.Object)
	default:
		return m.Data, nil
	}
}

func (s *MediaSource) object(ctx context.Context, name string) ([]byte, error) {
	object, err := s.Objects.Get(ctx, name)
	if err != nil {
		missing := errors.Is(err, jetstream.ErrObjectNotFound)
		return nil, &mediaError{permanent: missing, err: fmt.Errorf("read media object %q: %w", name, err)}
	}
	defer func() { _ = object.Close() }() // only read from
	return readBounded(object)
}

// readBounded reads one image, or says that it is too large.
func readBounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, xapi.MaxImageBytes+1))
	if err != nil {
		return nil, &mediaError{err: fmt.Errorf("read media: %w", err)}
	}
	if len(data) > xapi.MaxImageBytes {
		return nil, &mediaError{permanent: true, err: fmt.Errorf("media is larger than %d bytes", xapi.MaxImageBytes)}
	}
	return data, nil
}

var (
	// errPrivate refuses an address inside somebody's network.
	errPrivate = errors.New("address is not public")
	// errRedirect refuses to go where an answer points.
	errRedirect = errors.New("redirect is not followed")
)

// fetch reads a url that a producer named. Since that is anybody, the address
// is checked after it was resolved, when the connection is made: a name that
// points inside, or begins to point there later, reaches nothing.
func (s *MediaSource) fetch(ctx context.Context, address string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	dialer := &net.Dialer{Control: s.admit}
	transport := &http.Transport{
		DialContext: dialer.DialContext, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS12},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: s.follow}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, &mediaError{permanent: true, err: fmt.Errorf("fetch media: %w", err)}
	}
	resp, err := client.Do(req)
	if err != nil {
		refused := errors.Is(err, errPrivate) || errors.Is(err, errRedirect)
		return nil, &mediaError{permanent: refused, err: fmt.Errorf("fetch media: %w", withoutQuery(err))}
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	if resp.StatusCode != http.StatusOK {
		gone := resp.StatusCode >= 400 && resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout
		return nil, &mediaError{permanent: gone, err: fmt.Errorf("fetch media from %s: %s", req.URL.Host, resp.Status)}
	}
	return readBounded(resp.Body)
}

// admit refuses to connect to anything but public addresses.
func (s *MediaSource) admit(_, address string, _ syscall.RawConn) error {
	if s.AllowPrivate {
		return nil
	}
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("read address %s: %w", address, err)
	}
	ip := addr.Addr().Unmap()
	if ip == s.public {
		return nil
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
		"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fec0::/10",
	} {
		if netip.MustParsePrefix(cidr).Contains(ip) {
			return true
		}
	}
	return false
}

// follow bounds redirects and keeps them on https.
func (s *MediaSource) follow(req *http.Request, via []*http.Request) error {
	if len(via) > fetchRedirects {
		return fmt.Errorf("%w: more than %d", errRedirect, fetchRedirects)
	}
	if req.URL.Scheme != "https" && !s.AllowPrivate {
		return fmt.Errorf("%w: it leaves https", errRedirect)
	}
	return nil
}

// withoutQuery takes the query off the url in an http client's error: it may
// hold a signature.
func withoutQuery(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		if u, parseErr := url.Parse(wrapped.URL); parseErr == nil {
			u.RawQuery = ""
			return &url.Error{Op: wrapped.Op, URL: u.String(), Err: wrapped.Err}
		}
	}
	return err
}

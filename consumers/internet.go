package consumers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"syscall"
	"time"

	"github.com/jetpost/jetpost/xapi"
)

const (
	// maxAnswerHeaders bounds the headers of an answer, in bytes.
	maxAnswerHeaders = 64 << 10
	// keepIdle is how long a connection is kept that nobody uses.
	keepIdle = time.Minute
	// maxKept bounds the connections that are kept.
	maxKept = 100
)

// errPrivate refuses an address that is not public.
var errPrivate = errors.New("address is not public")

// internet calls addresses that were named by somebody who is not trusted. It reaches only
// public ones, which guards against server-side request forgery (SSRF). It is copied only
// before its first use.
type internet struct {
	// Private lists private networks that may be reached. It is for tests and trusted
	// installations, because whoever names an address can name any.
	Private []netip.Prefix

	roots *x509.CertPool                        // trusted instead of the system's, in tests
	proxy func(*http.Request) (*url.URL, error) // http.ProxyFromEnvironment if nil
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// roundTrip makes one request, on a connection of its own. Without a proxy the address is
// checked when the connection is made, after the name was resolved, so a name that changes
// to a private address later is refused, too. A proxy resolves the name again, so its own
// rules have to guard against such a change.
func (n *internet) roundTrip(req *http.Request) (*http.Response, error) {
	proxy, err := n.chooseProxy(req)
	if err != nil {
		return nil, err
	}
	transport := n.direct()
	if proxy != nil {
		if err := n.admitName(req.Context(), req.URL.Hostname()); err != nil {
			return nil, err
		}
		transport.DialContext = (&net.Dialer{}).DialContext
		transport.Proxy, transport.OnProxyConnectResponse = http.ProxyURL(proxy), xapi.ProxyAnswer
	}
	transport.DisableKeepAlives = true
	return transport.RoundTrip(req)
}

func (n *internet) chooseProxy(req *http.Request) (*url.URL, error) {
	choose := n.proxy
	if choose == nil {
		choose = http.ProxyFromEnvironment
	}
	proxy, err := choose(req)
	if err != nil {
		return nil, fmt.Errorf("read the proxy setting: %w", err)
	}
	return proxy, nil
}

// direct makes a transport whose connections lead to admitted addresses alone.
func (n *internet) direct() *http.Transport {
	return &http.Transport{
		DialContext:        (&net.Dialer{Control: n.admit}).DialContext,
		DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: n.roots, MinVersion: tls.VersionTLS12},
		MaxResponseHeaderBytes: maxAnswerHeaders, MaxIdleConns: maxKept, MaxIdleConnsPerHost: 1, IdleConnTimeout: keepIdle,
	}
}

// admit refuses to connect to an address that is not public.
func (n *internet) admit(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("read address %s: %w", address, err)
	}
	return n.public(addr.Addr())
}

// admitName refuses a name with an address that is not public.
func (n *internet) admitName(ctx context.Context, name string) error {
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return fmt.Errorf("resolve %s before the proxy does: %w", name, err)
	}
	for _, ip := range addresses {
		if err := n.public(ip); err != nil {
			return err
		}
	}
	return nil
}

func (n *internet) public(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("") // no prefix contains an address with a zone
	for _, allowed := range n.Private {
		if allowed.Contains(ip) {
			return nil
		}
	}
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || sharedRange(ip) {
		return fmt.Errorf("%s: %w", ip, errPrivate)
	}
	return nil
}

// sharedRange reports whether ip is in a range that netip does not count as private but
// that is not public: carrier NAT, benchmarking, reserved, old site-local ranges, and ranges
// that embed an IPv4 address.
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

// quiet removes the queries of urls from an error's text, because they may contain a
// signature.
type quiet struct{ error }

var queries = regexp.MustCompile(`[?#][^"]*`)

func (e quiet) Error() string { return queries.ReplaceAllString(e.error.Error(), "") }
func (e quiet) Unwrap() error { return e.error }

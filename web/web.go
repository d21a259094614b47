package web

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
)

const (
	// maxBodyBytes bounds the body of a request. The longest field is the reason of a pause.
	maxBodyBytes = 4 << 10
	// maxQueryBytes bounds what X may send back.
	maxQueryBytes = 4 << 10
	// requestTimeout bounds a request that only asks the workers for a link.
	requestTimeout = 15 * time.Second
	// assetSeconds is how long a browser caches an asset.
	assetSeconds = 600
)

//go:embed assets
var assets embed.FS

// Workers carry out what people ask for on the pages: a client.Client does. Its errors are
// *jetpost.APIError, or lead to one.
type Workers interface {
	LinkGet(ctx context.Context, in jetpost.LinkGet) (jetpost.LinkInfo, error)
	AccountConsent(ctx context.Context, account string, in jetpost.AccountConsent) (jetpost.Consent, error)
	AccountConnect(ctx context.Context, account string, in jetpost.AccountConnect) (jetpost.Connected, error)
}

// Config says what a Handler needs; everything but Now must be there.
type Config struct {
	Site    Site
	Workers Workers
	Log     *slog.Logger
	Now     func() time.Time // time.Now where nil
}

// Handler serves the pages. It is safe for concurrent use, and has no state between
// requests.
type Handler struct {
	cfg       Config
	mux       *http.ServeMux
	crossSite *http.CrossOriginProtection
	pages     map[string]*template.Template
	base      string // path of the public address, "" or /like/this
}

// New makes a handler. Where the public address has a path, the handler is to be
// mounted on that path, and takes it away itself.
func New(cfg Config) (*Handler, error) {
	if cfg.Workers == nil || cfg.Log == nil || cfg.Site.Public == nil {
		return nil, errors.New("make web handler: want workers, a log and a public address")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	pages, err := readPages()
	if err != nil {
		return nil, fmt.Errorf("make web handler: %w", err)
	}
	h := &Handler{
		cfg: cfg, pages: pages, mux: http.NewServeMux(), crossSite: http.NewCrossOriginProtection(),
		base: cfg.Site.Public.Path,
	}
	if err := h.crossSite.AddTrustedOrigin(origin(cfg.Site.Public)); err != nil {
		return nil, fmt.Errorf("make web handler: %w", err)
	}
	h.mux.HandleFunc("GET "+h.base+"/connect/{token}", h.showLink)
	h.mux.HandleFunc("POST "+h.base+"/connect/{token}", h.begin)
	h.mux.HandleFunc("GET "+h.base+callbackPath, h.finish)
	h.mux.HandleFunc("GET "+h.base+"/assets/{file}", func(w http.ResponseWriter, r *http.Request) {
		if !serveAsset(w, r, "assets") {
			h.show(w, unknownPage())
		}
	})
	h.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { h.show(w, unknownPage()) })
	return h, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	guard(w.Header(), policy())
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost:
		w.Header().Set("Allow", "GET, HEAD, POST")
		h.show(w, methodPage())
	case r.ContentLength > maxBodyBytes:
		h.show(w, tooLargePage(http.StatusRequestEntityTooLarge))
	case len(r.URL.RawQuery) > maxQueryBytes:
		h.show(w, tooLargePage(http.StatusRequestURITooLong))
	default:
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		h.mux.ServeHTTP(w, r)
	}
}

// guard sets what holds for every answer: no cache stores it, other sites learn nothing
// of it, it cannot be framed, and an injected script could load and send nothing.
func guard(header http.Header, policy string) {
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Security-Policy", policy)
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("X-Robots-Tag", "noindex")
}

// policy is the content security policy of a page whose form may lead to those
// sources. Browsers hold a form's whole way to it, with every redirect.
func policy(formSources ...string) string {
	action := "'none'"
	if len(formSources) > 0 {
		action = strings.Join(formSources, " ")
	}
	return "default-src 'none'; style-src 'self'; img-src 'self'; form-action " + action + "; frame-ancestors 'none'; base-uri 'none'"
}

// sources are an address's host and, where it has a name, the hosts below it:
// X may send people on to one of those, for instance on a phone.
func sources(address string) []string {
	u, err := url.Parse(address)
	if err != nil {
		return nil
	}
	list := []string{origin(u)}
	if u.Scheme == "https" && net.ParseIP(u.Hostname()) == nil {
		list = append(list, "https://*."+u.Host)
	}
	return list
}

func origin(u *url.URL) string { return u.Scheme + "://" + u.Host }

// serveAsset serves a file of a directory of the assets, and tells whether there is one.
func serveAsset(w http.ResponseWriter, r *http.Request, dir string) bool {
	name := path.Join(dir, r.PathValue("file"))
	if info, err := fs.Stat(assets, name); !fs.ValidPath(name) || err != nil || info.IsDir() {
		return false
	}
	w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", assetSeconds))
	http.ServeFileFS(w, r, assets, name)
	return true
}

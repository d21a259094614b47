package xapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/textproto"
	"time"
)

const (
	// MaxImageBytes is the largest image X takes.
	MaxImageBytes = 5 << 20
	// defaultMediaLifetime is how long an upload can be posted, where the answer
	// does not say.
	defaultMediaLifetime = 24 * time.Hour
	// uploadTime and slowestUpload, in bytes a second, bound an upload by its
	// size: on a slow uplink the largest image takes minutes.
	uploadTime    = 5 * time.Second
	slowestUpload = 64 << 10
)

// Errors of UploadMedia about what it was given. Nothing was sent.
var (
	ErrMediaType     = errors.New("media type not supported")
	ErrMediaTooLarge = errors.New("media larger than 5 MiB")
)

// Media is an uploaded image. Post.MediaIDs takes its ID; a read post names it by
// its Key. It can be posted until ExpiresAt.
type Media struct {
	ID, Key   string
	ExpiresAt time.Time
}

// UploadMedia uploads one image of at most MaxImageBytes in one request: JPEG,
// PNG, WEBP, BMP or TIFF. GIFs and videos need an upload in parts, which it does
// not do. An AmbiguousError is harmless here: an upload that nobody posts expires.
func (c *Client) UploadMedia(ctx context.Context, r io.Reader, mimeType string) (Media, error) {
	if !imageType(mimeType) {
		return Media{}, fmt.Errorf("upload media: %w: %q", ErrMediaType, mimeType)
	}
	image, err := io.ReadAll(io.LimitReader(r, MaxImageBytes+1))
	if err != nil {
		return Media{}, fmt.Errorf("read media: %w", err)
	}
	if len(image) > MaxImageBytes {
		return Media{}, fmt.Errorf("upload media: %w", ErrMediaTooLarge)
	}
	body, contentType, err := encodeUpload(image, mimeType)
	if err != nil {
		return Media{}, fmt.Errorf("encode media: %w", err)
	}
	var out struct {
		Data struct {
			ID               string `json:"id"`
			MediaKey         string `json:"media_key"`
			ExpiresAfterSecs int64  `json:"expires_after_secs"`
		} `json:"data"`
	}
	// Counted from before the request, the lifetime errs on the short side.
	start := time.Now()
	err = c.do(ctx, call{
		endpoint:    EndpointUploadMedia,
		path:        "/2/media/upload",
		contentType: contentType,
		body:        body,
		effect:      true,
		atLeast:     uploadTime + time.Duration(len(body))*time.Second/slowestUpload,
	}, &out, func() bool { return out.Data.ID != "" })
	if err != nil {
		return Media{}, err
	}
	lifetime := defaultMediaLifetime
	if secs := out.Data.ExpiresAfterSecs; secs > 0 && secs < int64(30*defaultMediaLifetime/time.Second) {
		lifetime = time.Duration(secs) * time.Second
	}
	return Media{ID: out.Data.ID, Key: out.Data.MediaKey, ExpiresAt: start.Add(lifetime)}, nil
}

// imageType reports whether X takes the type in a single upload.
func imageType(mimeType string) bool {
	base, _, err := mime.ParseMediaType(mimeType)
	if err != nil {
		return false
	}
	switch base {
	case "image/jpeg", "image/pjpeg", "image/png", "image/webp", "image/bmp", "image/tiff":
		return true
	}
	return false
}

// encodeUpload writes the form. It has these two fields only: X refuses a
// media_type beside them.
func encodeUpload(image []byte, mimeType string) (body []byte, contentType string, err error) {
	var buf bytes.Buffer
	form := multipart.NewWriter(&buf)
	if err := form.WriteField("media_category", "tweet_image"); err != nil {
		return nil, "", err
	}
	part, err := form.CreatePart(textproto.MIMEHeader{
		"Content-Disposition": {`form-data; name="media"; filename="media"`},
		"Content-Type":        {mimeType},
	})
	if err != nil {
		return nil, "", err
	}
	if _, err := part.Write(image); err != nil {
		return nil, "", err
	}
	if err := form.Close(); err != nil {
		return nil, "", err
	}
	return buf.Bytes(), form.FormDataContentType(), nil
}

// SetAltText describes an uploaded image for people who cannot see it, in at most
// 1,000 characters. Setting it again does no harm.
func (c *Client) SetAltText(ctx context.Context, mediaID, text string) error {
	type altText struct {
		Text string `json:"text"`
	}
	type metadata struct {
		AltText altText `json:"alt_text"`
	}
	body, err := json.Marshal(struct {
		ID       string   `json:"id"`
		Metadata metadata `json:"metadata"`
	}{mediaID, metadata{altText{text}}})
	if err != nil {
		return fmt.Errorf("encode alt text: %w", err)
	}
	return c.do(ctx, call{
		endpoint:    EndpointMediaMetadata,
		path:        "/2/media/metadata",
		contentType: "application/json",
		body:        body,
	}, nil, nil)
}

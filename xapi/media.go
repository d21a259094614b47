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
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// MaxImageBytes and MaxGIFBytes are the largest that X takes, MaxVideoBytes the
	// largest that a thousand segments hold, which is as many as X counts.
	MaxImageBytes = 5 << 20
	MaxGIFBytes   = 15 << 20
	MaxVideoBytes = 1000 * segmentBytes
	// segmentBytes is a segment of an upload in parts. X's edge refuses larger ones.
	segmentBytes = 1 << 20
	// defaultMediaLifetime is how long an upload can be posted, where the answer
	// does not say.
	defaultMediaLifetime = 24 * time.Hour
	// defaultCheckAfter is how long to wait for X's processing if X does not say, and
	// maxCheckAfter bounds what X says.
	defaultCheckAfter = 5 * time.Second
	maxCheckAfter     = 5 * time.Minute
	// uploadTime and slowestUpload, in bytes a second, bound an upload by its
	// size: on a slow uplink the largest image takes minutes.
	uploadTime    = 5 * time.Second
	slowestUpload = 64 << 10
	// segmentTries is how often one segment is sent, and segmentWait the first of
	// the doubling waits in between.
	segmentTries = 4
	segmentWait  = time.Second
)

// Errors of UploadMedia about what it was given. Nothing was sent.
var (
	ErrMediaType     = errors.New("media type not supported")
	ErrMediaTooLarge = errors.New("media larger than X takes")
)

// ProcessingError says that X took the bytes and could not process them. Err is what X
// said.
type ProcessingError struct {
	ID  string
	Err error
}

func (e *ProcessingError) Error() string { return fmt.Sprintf("media %s: %v", e.ID, e.Err) }
func (e *ProcessingError) Unwrap() error { return e.Err }

// Media is an uploaded file. Post.MediaIDs takes its ID; a read post names it by
// its Key. It can be posted until ExpiresAt, and not before X has processed it:
// while CheckAfter is not zero, MediaStatus tells more, after so long.
type Media struct {
	ID, Key    string
	ExpiresAt  time.Time
	CheckAfter time.Duration
	// Windows are the rate windows that X's last answer about it reported.
	Windows []Window
}

// MediaLimit is the largest size, in bytes, of a media type that UploadMedia
// takes, or 0 for any other type.
func MediaLimit(mimeType string) int64 {
	switch category(mimeType) {
	case "tweet_image":
		return MaxImageBytes
	case "tweet_gif":
		return MaxGIFBytes
	case "tweet_video":
		return MaxVideoBytes
	default:
		return 0
	}
}

// MediaKinds describes the types that UploadMedia takes and MediaType recognises.
const MediaKinds = "JPEG, PNG and WebP images, GIFs, and MP4, QuickTime and WebM videos"

// SniffBytes is how much of a file MediaType reads.
const SniffBytes = 512

// MediaType tells a file's type by its first bytes, SniffBytes at most. Beside what
// net/http knows, it takes every file of the MP4 family for a video but pictures and
// sound in it, and not every file of Matroska's form for WebM.
func MediaType(head []byte) string {
	if len(head) >= 12 && string(head[4:8]) == "ftyp" {
		switch brand := string(head[8:12]); brand {
		case "qt  ":
			return "video/quicktime"
		case "avif", "avis", "heic", "heim", "heis", "heix", "hevc", "hevm", "hevs", "hevx", "mif1", "msf1":
			return "image/" + strings.TrimSpace(brand)
		case "F4A ", "F4B ", "M4A ", "M4B ", "M4P ":
			return "audio/mp4"
		default:
			return "video/mp4"
		}
	}
	told := http.DetectContentType(head)
	if told == "video/webm" && !bytes.Contains(head, []byte("webm")) {
		return "video/x-matroska"
	}
	return told
}

// category is X's word for what a file of that type becomes in a post.
func category(mimeType string) string {
	base, _, err := mime.ParseMediaType(mimeType)
	if err != nil {
		return ""
	}
	switch base {
	case "image/jpeg", "image/png", "image/webp":
		return "tweet_image"
	case "image/gif":
		return "tweet_gif"
	case "video/mp4", "video/quicktime", "video/webm", "video/mp2t":
		return "tweet_video"
	}
	return ""
}

// IsImage reports whether a post can have several files of the type.
func IsImage(mimeType string) bool { return category(mimeType) == "tweet_image" }

// UploadCalls counts the calls that UploadMedia makes for a file if none fails.
func UploadCalls(size int64, mimeType string) map[Endpoint]int {
	if IsImage(mimeType) {
		return map[Endpoint]int{EndpointUploadMedia: 1}
	}
	segments := int((size + segmentBytes - 1) / segmentBytes)
	return map[Endpoint]int{EndpointInitializeMedia: 1, EndpointAppendMedia: segments, EndpointFinalizeMedia: 1}
}

// UploadMedia uploads one file of size bytes: an image in one request, a GIF or a video
// in segments. It sends a segment again if its answer is lost. A failure leaves only an
// upload that is never posted, and that X forgets.
func (c *Client) UploadMedia(ctx context.Context, r io.Reader, size int64, mimeType string) (Media, error) {
	limit := MediaLimit(mimeType)
	switch {
	case limit == 0:
		return Media{}, fmt.Errorf("upload media: %w: %q", ErrMediaType, mimeType)
	case size > limit:
		return Media{}, fmt.Errorf("upload media: %w: %d bytes of %s, at most %d", ErrMediaTooLarge, size, mimeType, limit)
	case IsImage(mimeType):
		return c.uploadImage(ctx, r, size, mimeType)
	default:
		return c.uploadSegments(ctx, r, size, mimeType)
	}
}

// wireUpload is how X answers every step of an upload. Only the id is sure to be
// there.
type wireUpload struct {
	told []Window
	Data struct {
		ID               string `json:"id"`
		MediaKey         string `json:"media_key"`
		ExpiresAfterSecs int64  `json:"expires_after_secs"`
		ProcessingInfo   *struct {
			State          string `json:"state"`
			CheckAfterSecs int64  `json:"check_after_secs"`
			Error          struct {
				Name    string `json:"name"`
				Message string `json:"message"`
			} `json:"error"`
		} `json:"processing_info"`
	} `json:"data"`
}

func (w *wireUpload) complete() bool { return w.Data.ID != "" }

// media reads an answer to a request that was made at start: counted from then,
// the lifetime errs on the short side.
func (w *wireUpload) media(start time.Time) (Media, error) {
	m := Media{ID: w.Data.ID, Key: w.Data.MediaKey, ExpiresAt: start.Add(defaultMediaLifetime), Windows: w.told}
	if secs := w.Data.ExpiresAfterSecs; secs > 0 && secs < int64(30*defaultMediaLifetime/time.Second) {
		m.ExpiresAt = start.Add(time.Duration(secs) * time.Second)
	}
	info := w.Data.ProcessingInfo
	switch {
	case info == nil || info.State == "succeeded":
	case info.State == "failed":
		words := "X could not process it"
		if said := firstOf(info.Error.Message, info.Error.Name); said != "" {
			words += ": " + said
		}
		return m, &ProcessingError{ID: m.ID, Err: errors.New(words)}
	case info.CheckAfterSecs <= 0:
		m.CheckAfter = defaultCheckAfter
	default:
		m.CheckAfter = min(time.Duration(min(info.CheckAfterSecs, 1<<20))*time.Second, maxCheckAfter)
	}
	return m, nil
}

func (c *Client) uploadImage(ctx context.Context, r io.Reader, size int64, mimeType string) (Media, error) {
	image := make([]byte, size)
	if _, err := io.ReadFull(r, image); err != nil {
		return Media{}, fmt.Errorf("read media: %w", err)
	}
	// It has these two fields only: X refuses a media_type beside them.
	body, contentType, err := encodeForm("media_category", "tweet_image", image, mimeType)
	if err != nil {
		return Media{}, err
	}
	var out wireUpload
	start := time.Now()
	err = c.do(ctx, call{
		endpoint:    EndpointUploadMedia,
		path:        "/2/media/upload",
		contentType: contentType,
		body:        body,
		effect:      true,
		atLeast:     uploadBound(len(body)),
		told:        &out.told,
	}, &out, out.complete)
	if err != nil {
		return Media{}, err
	}
	return out.media(start)
}

func (c *Client) uploadSegments(ctx context.Context, r io.Reader, size int64, mimeType string) (Media, error) {
	id, err := c.initializeUpload(ctx, size, mimeType)
	if err != nil {
		return Media{}, err
	}
	segment := make([]byte, segmentBytes)
	for i := 0; size > 0; i++ {
		part := segment[:min(size, segmentBytes)]
		if _, err := io.ReadFull(r, part); err != nil {
			return Media{}, fmt.Errorf("read media: %w", err)
		}
		if err := c.appendSegment(ctx, id, i, part); err != nil {
			return Media{}, fmt.Errorf("segment %d: %w", i, err)
		}
		size -= int64(len(part))
	}
	return c.finalizeUpload(ctx, id)
}

func (c *Client) initializeUpload(ctx context.Context, size int64, mimeType string) (id string, err error) {
	base, _, _ := mime.ParseMediaType(mimeType)
	body, err := json.Marshal(struct {
		Category string `json:"media_category"`
		Type     string `json:"media_type"`
		Total    int64  `json:"total_bytes"`
	}{category(mimeType), base, size})
	if err != nil {
		return "", fmt.Errorf("encode upload: %w", err)
	}
	var out wireUpload
	err = c.do(ctx, call{
		endpoint:    EndpointInitializeMedia,
		path:        "/2/media/upload/initialize",
		contentType: "application/json",
		body:        body,
		effect:      true,
	}, &out, out.complete)
	return out.Data.ID, err
}

// appendSegment sends a segment until X has it: sent twice, it is the same one.
func (c *Client) appendSegment(ctx context.Context, id string, index int, part []byte) error {
	body, contentType, err := encodeForm("segment_index", strconv.Itoa(index), part, "application/octet-stream")
	if err != nil {
		return err
	}
	wait := segmentWait
	for try := 1; ; try++ {
		err := c.do(ctx, call{
			endpoint:    EndpointAppendMedia,
			path:        "/2/media/upload/" + url.PathEscape(id) + "/append",
			contentType: contentType,
			body:        body,
			atLeast:     uploadBound(len(body)),
		}, nil, nil)
		if !mayPass(err) || try == segmentTries {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
		wait *= 2
	}
}

// mayPass reports whether the next try may succeed.
func mayPass(err error) bool {
	var notSent *NotSentError
	var unavailable *UnavailableError
	return errors.As(err, &notSent) || errors.As(err, &unavailable)
}

// finalizeUpload asks for the upload's status where the answer is lost.
func (c *Client) finalizeUpload(ctx context.Context, id string) (Media, error) {
	var out wireUpload
	start := time.Now()
	err := c.do(ctx, call{
		endpoint: EndpointFinalizeMedia,
		path:     "/2/media/upload/" + url.PathEscape(id) + "/finalize",
		effect:   true,
		told:     &out.told,
	}, &out, out.complete)
	var doubtful *AmbiguousError
	switch {
	case errors.As(err, &doubtful):
		var processing *ProcessingError
		if m, asked := c.MediaStatus(ctx, id); asked == nil || errors.As(asked, &processing) {
			return m, asked
		}
		return Media{}, err
	case err != nil:
		return Media{}, err
	}
	return out.media(start)
}

// MediaStatus asks how far X is with an upload in parts. It fails with a
// *ProcessingError where X cannot make a medium of it.
func (c *Client) MediaStatus(ctx context.Context, id string) (Media, error) {
	var out wireUpload
	start := time.Now()
	err := c.do(ctx, call{
		endpoint: EndpointMediaStatus,
		path:     "/2/media/upload",
		query:    url.Values{"command": {"STATUS"}, "media_id": {id}},
		told:     &out.told,
	}, &out, out.complete)
	if err != nil {
		return Media{}, err
	}
	return out.media(start)
}

// uploadBound is the time that an upload of that many bytes may take.
func uploadBound(bytes int) time.Duration {
	return uploadTime + time.Duration(bytes)*time.Second/slowestUpload
}

// encodeForm writes a form of one field and the bytes.
func encodeForm(field, value string, media []byte, mimeType string) (body []byte, contentType string, err error) {
	var buf bytes.Buffer
	form := multipart.NewWriter(&buf)
	err = form.WriteField(field, value)
	if err == nil {
		var part io.Writer
		part, err = form.CreatePart(textproto.MIMEHeader{
			"Content-Disposition": {`form-data; name="media"; filename="media"`},
			"Content-Type":        {mimeType},
		})
		if err == nil {
			_, err = part.Write(media)
		}
	}
	if err = errors.Join(err, form.Close()); err != nil {
		return nil, "", fmt.Errorf("encode media: %w", err)
	}
	return buf.Bytes(), form.FormDataContentType(), nil
}

// SetAltText describes an uploaded file for people who cannot see it, in at most
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

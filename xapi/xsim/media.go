package xsim

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	maxImageBytes   = 5 << 20
	maxGIFBytes     = 15 << 20
	maxVideoBytes   = int64(8 << 30)
	maxDMVideoBytes = int64(512 << 20)
	mediaTTLDefault = 24 * time.Hour
)

// The states of a medium.
const (
	MediaUploading  = "uploading"   // initialized, but not finalized
	MediaPending    = "pending"     // finalized; processing has not begun
	MediaInProgress = "in_progress" // being processed
	MediaSucceeded  = "succeeded"   // ready for a post
	MediaFailed     = "failed"      // of no use
)

// Media is a medium, uploaded or on its way.
type Media struct {
	ID        string    `json:"id"`
	MediaKey  string    `json:"media_key"`
	UserID    string    `json:"user_id"`
	Category  string    `json:"category"` // as given: tweet_image, ...
	Type      string    `json:"type"`     // as sniffed: image/png, ...; "" while it uploads
	Size      int       `json:"size"`     // bytes; those that have come, while it uploads
	SHA256    string    `json:"sha256"`   // of the bytes, in hex; "" while it uploads
	AltText   string    `json:"alt_text"`
	ExpiresAt time.Time `json:"expires_at"`

	State       string `json:"state"`        // one of the Media constants
	Segments    int    `json:"segments"`     // that have come, each counted once; 0 for one shot
	StatusAsked int    `json:"status_asked"` // how often STATUS was answered
}

type medium struct {
	Media
	width, height int     // pixels, of an image
	upload        *upload // nil once finalized
	picture       []byte  // for the page; nil if there is none to show

	finalized  time.Time
	processing time.Duration // 0: none
	failed     bool          // when processing ends
	failure    string        // the words of it, if they are told
}

// Media returns what was uploaded, in order: by the user, named by id or
// handle, or by all for "".
func (s *Server) Media(user string) []Media {
	w := s.lock()
	defer s.unlock()
	a, now := w.user(user), s.now()
	list := []Media{}
	for _, m := range w.mediaList {
		if user == "" || a != nil && m.UserID == a.ID {
			shown := m.Media
			shown.State = m.state(now)
			list = append(list, shown)
		}
	}
	return list
}

// ExpireMedia ends the life of all media of the user, and the uploads under way.
// It returns false for an unknown user.
func (s *Server) ExpireMedia(user string) bool {
	w := s.lock()
	defer s.unlock()
	a, now := w.user(user), s.now()
	if a == nil {
		return false
	}
	for _, m := range w.mediaList {
		if m.UserID == a.ID && now.Before(m.ExpiresAt) {
			m.ExpiresAt = now
			w.touch(m)
		}
	}
	return true
}

func mediaKeys(media []*medium) []string {
	keys := make([]string, 0, len(media))
	for _, m := range media {
		keys = append(keys, m.MediaKey)
	}
	return keys
}

// accepts says which types a category takes, and how many bytes. Subtitles are
// not modelled.
func accepts(category string) (types []string, most int64) {
	video := []string{"video/mp4", "video/quicktime", "video/mp2t", "video/webm"}
	switch category {
	case "tweet_image", "dm_image":
		return []string{"image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"}, maxImageBytes
	case "tweet_gif", "dm_gif":
		return []string{"image/gif"}, maxGIFBytes
	case "tweet_video", "amplify_video":
		return video, maxVideoBytes
	case "dm_video":
		return video, maxDMVideoBytes
	}
	return nil, 0
}

// fits checks type and size against the category's.
func fits(category, kind string, size int64) (mistake, bool) {
	types, most := accepts(category)
	if !slices.Contains(types, kind) || size > most {
		return mistake{"media", kind, fmt.Sprintf("media type or size is not accepted for %s (%d bytes, %d at most)", category, size, most)}, false
	}
	return mistake{}, true
}

// addMedium makes a medium of the caller's.
func (s *Server) addMedium(c *call, category string, life time.Duration) *medium {
	key := "3_"
	switch category {
	case "tweet_video", "dm_video":
		key = "7_"
	case "amplify_video":
		key = "13_"
	case "tweet_gif", "dm_gif":
		key = "16_"
	}
	id := s.nextID()
	m := &medium{Media: Media{ID: id, MediaKey: key + id, UserID: c.account.ID, Category: category, ExpiresAt: c.now.Add(life)}}
	s.w.media[id], s.w.mediaList, c.effect = m, append(s.w.mediaList, m), true
	s.w.touch(m)
	return m
}

// mediumOf finds a medium of the caller's that has not expired, whatever its state.
func (s *Server) mediumOf(c *call, id string) *medium {
	m := s.w.media[id]
	if m == nil || m.UserID != c.account.ID || !c.now.Before(m.ExpiresAt) {
		return nil
	}
	return m
}

// page is the last but one part of the address of a post's media.
func (m *medium) page() string {
	if strings.HasSuffix(m.Category, "_video") {
		return "video"
	}
	return "photo"
}

// answer is what one shot, FINALIZE and STATUS return of a medium.
func (m *medium) answer(now time.Time) answer {
	type size struct {
		W    int    `json:"w"`
		H    int    `json:"h"`
		Type string `json:"image_type"`
	}
	type video struct {
		Type string `json:"video_type"`
	}
	shown := struct {
		ID         string          `json:"id"`
		MediaKey   string          `json:"media_key"`
		Size       int             `json:"size"`
		Expires    int64           `json:"expires_after_secs"`
		Image      *size           `json:"image,omitempty"`
		Video      *video          `json:"video,omitempty"`
		Processing *processingInfo `json:"processing_info,omitempty"`
	}{ID: m.ID, MediaKey: m.MediaKey, Size: m.Size, Expires: int64(m.ExpiresAt.Sub(now) / time.Second), Processing: m.processingInfo(now)}
	if m.page() == "video" {
		shown.Video = &video{m.Type}
	} else {
		shown.Image = &size{m.width, m.height, m.Type}
	}
	return jsonAnswer(http.StatusOK, map[string]any{"data": shown})
}

// upload takes an image in one shot.
func (s *Server) upload(c *call) answer {
	object, data, err := s.readMedia(c, uploadSchema())
	if err != nil {
		return s.malformed(c, mistake{message: err.Error()})
	}
	category := object["media_category"].(string)
	if !strings.HasSuffix(category, "_image") && !strings.HasSuffix(category, "_gif") {
		return invalid(mistake{"media_category", category, "one shot uploads are for images"})
	}
	found := inspect([][]byte{data})
	if m, ok := fits(category, found.kind, int64(len(data))); !ok {
		return invalid(m)
	}
	m := s.addMedium(c, category, cmp.Or(s.MediaTTL, mediaTTLDefault))
	m.Size, m.finalized = len(data), c.now
	m.take(found)
	s.showPicture(m, [][]byte{data})
	return m.answer(c.now)
}

// readMedia takes both forms of a body with bytes in it. Its errors are X's answers.
func (s *Server) readMedia(c *call, sc schema) (object map[string]any, data []byte, err error) {
	kind, params, _ := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	switch kind {
	case "multipart/form-data":
		object, err = s.readForm(c, params["boundary"])
	case "application/json":
		object, err = decodeObject(c.body)
	default:
		err = fmt.Errorf("content type %q is not supported", kind)
	}
	if err != nil {
		return nil, nil, err
	}
	for name, value := range object {
		if text, ok := value.(string); ok && kind != "application/json" && sc.fields[name].kind == "integer" {
			object[name] = json.Number(text)
		}
	}
	if m, ok := sc.check("", object); !ok {
		return nil, nil, errors.New(m.message)
	}
	data = []byte(object["media"].(string))
	if kind == "application/json" {
		data, err = base64.StdEncoding.DecodeString(string(data))
	}
	if err == nil && len(data) == 0 {
		err = errors.New("$.media: is empty")
	}
	return object, data, err
}

// readForm reads a multipart body as the object it stands for.
func (s *Server) readForm(c *call, boundary string) (map[string]any, error) {
	object := map[string]any{}
	if boundary == "" {
		return nil, errors.New("the multipart body has no boundary")
	}
	for reader := multipart.NewReader(bytes.NewReader(c.body), boundary); ; {
		part, err := reader.NextPart()
		if errors.Is(err, io.EOF) {
			return object, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read multipart body: %w", err)
		}
		value, err := io.ReadAll(part)
		if err != nil {
			return nil, fmt.Errorf("read part %q: %w", part.FormName(), err)
		}
		if _, twice := object[part.FormName()]; twice {
			return nil, fmt.Errorf("part %q is given twice", part.FormName())
		}
		if part.FormName() == "media" && part.FileName() == "" && !s.lenient(c, "a media part without a file name") {
			return nil, errors.New(`part "media" has no filename, so it is no file`)
		}
		object[part.FormName()] = string(value)
	}
}

// describe serves the metadata of a medium; it stores the alt text.
func (s *Server) describe(c *call) answer {
	var req struct {
		ID       string `json:"id"`
		Metadata struct {
			AltText *struct {
				Text string `json:"text"`
			} `json:"alt_text"`
		} `json:"metadata"`
	}
	if _, m, ok := c.readJSON(metadataSchema(), &req); !ok {
		return s.malformed(c, m)
	}
	m := s.mediumOf(c, req.ID)
	if m == nil || m.upload != nil || m.state(c.now) == MediaFailed {
		return invalid(mistake{"id", req.ID, messageMediaIDs})
	}
	shown := map[string]any{}
	if alt := req.Metadata.AltText; alt != nil {
		m.AltText, c.effect = alt.Text, true
		s.w.touch(m)
		shown["alt_text"] = map[string]string{"text": alt.Text}
	}
	return jsonAnswer(http.StatusOK, map[string]any{"data": map[string]any{"id": m.ID, "associated_metadata": shown}})
}

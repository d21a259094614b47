package xsim

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	_ "image/gif"  // for the size of GIFs
	_ "image/jpeg" // for the size of JPEGs
	_ "image/png"  // for the size of PNGs
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"time"
)

const (
	maxImageBytes   = 5 << 20
	maxGIFBytes     = 15 << 20
	mediaTTLDefault = 24 * time.Hour
)

// Media is an uploaded medium.
type Media struct {
	ID        string    `json:"id"`
	MediaKey  string    `json:"media_key"`
	UserID    string    `json:"user_id"`
	Category  string    `json:"category"` // as given: tweet_image, ...
	Type      string    `json:"type"`     // as sniffed: image/png, ...
	Size      int       `json:"size"`     // bytes
	SHA256    string    `json:"sha256"`   // of the bytes, in hex
	AltText   string    `json:"alt_text"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Media returns what was uploaded, in order: by the user, named by id or
// handle, or by all for "".
func (s *Server) Media(user string) []Media {
	w := s.lock()
	defer s.mu.Unlock()
	a := w.user(user)
	list := []Media{}
	for _, m := range w.mediaList {
		if user == "" || a != nil && m.UserID == a.ID {
			list = append(list, *m)
		}
	}
	return list
}

func mediaKeys(media []*Media) []string {
	keys := make([]string, 0, len(media))
	for _, m := range media {
		keys = append(keys, m.MediaKey)
	}
	return keys
}

// upload takes an image in one shot.
func (s *Server) upload(c *call) answer {
	data, category, err := readUpload(c)
	if err != nil {
		return s.malformed(c, mistake{message: err.Error()})
	}
	kind := http.DetectContentType(data)
	images, most := []string{"image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"}, maxImageBytes
	switch category {
	case "tweet_image", "dm_image":
	case "tweet_gif", "dm_gif":
		images, most = []string{"image/gif"}, maxGIFBytes
	default:
		return invalid(mistake{"media_category", category, "one shot uploads are for images"})
	}
	if !slices.Contains(images, kind) || len(data) > most {
		return invalid(mistake{"media", kind, fmt.Sprintf("media type or size is not accepted for %s (%d bytes, %d at most)", category, len(data), most)})
	}
	ttl := cmp.Or(s.MediaTTL, mediaTTLDefault)
	sum := sha256.Sum256(data)
	id := s.nextID()
	m := &Media{
		ID: id, MediaKey: "3_" + id, UserID: c.account.ID, Category: category, Type: kind, Size: len(data),
		SHA256: hex.EncodeToString(sum[:]), ExpiresAt: c.now.Add(ttl),
	}
	s.w.media[id], s.w.mediaList, c.effect = m, append(s.w.mediaList, m), true

	type size struct {
		W    int    `json:"w"`
		H    int    `json:"h"`
		Type string `json:"image_type"`
	}
	shown := size{Type: kind}
	if config, _, err := image.DecodeConfig(bytes.NewReader(data)); err == nil {
		shown.W, shown.H = config.Width, config.Height
	}
	return jsonAnswer(http.StatusOK, map[string]any{"data": struct {
		ID       string `json:"id"`
		MediaKey string `json:"media_key"`
		Size     int    `json:"size"`
		Expires  int64  `json:"expires_after_secs"`
		Image    size   `json:"image"`
	}{m.ID, m.MediaKey, m.Size, int64(ttl / time.Second), shown}})
}

// readUpload takes both forms of the body. Its errors are X's answers.
func readUpload(c *call) (data []byte, category string, err error) {
	kind, params, _ := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	object := map[string]any{}
	switch kind {
	case "multipart/form-data":
		object, err = readForm(c.body, params["boundary"])
	case "application/json":
		object, err = decodeObject(c.body)
	default:
		err = fmt.Errorf("content type %q is not supported", kind)
	}
	if err != nil {
		return nil, "", err
	}
	if m, ok := uploadSchema().check("", object); !ok {
		return nil, "", errors.New(m.message)
	}
	data, category = []byte(object["media"].(string)), object["media_category"].(string)
	if kind == "application/json" {
		data, err = base64.StdEncoding.DecodeString(string(data))
	}
	if err == nil && len(data) == 0 {
		err = errors.New("$.media: is empty")
	}
	return data, category, err
}

// readForm reads a multipart body as the object it stands for.
func readForm(body []byte, boundary string) (map[string]any, error) {
	object := map[string]any{}
	if boundary == "" {
		return nil, errors.New("the multipart body has no boundary")
	}
	for reader := multipart.NewReader(bytes.NewReader(body), boundary); ; {
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
		object[part.FormName()] = string(value)
	}
}

// describe serves the metadata of a medium; alt text is what is kept.
func (s *Server) describe(c *call) answer {
	kind, _, _ := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	object, err := decodeObject(c.body)
	if err != nil || kind != "application/json" {
		return s.malformed(c, mistake{message: messageNotObject})
	}
	if m, ok := metadataSchema().check("", object); !ok {
		return s.malformed(c, m)
	}
	var req struct {
		ID       string `json:"id"`
		Metadata struct {
			AltText *struct {
				Text string `json:"text"`
			} `json:"alt_text"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(c.body, &req); err != nil {
		return s.malformed(c, mistake{message: messageNotObject})
	}
	m := s.w.media[req.ID]
	if m == nil || m.UserID != c.account.ID || !c.now.Before(m.ExpiresAt) {
		return invalid(mistake{"id", req.ID, messageMediaIDs})
	}
	shown := map[string]any{}
	if alt := req.Metadata.AltText; alt != nil {
		m.AltText, c.effect = alt.Text, true
		shown["alt_text"] = map[string]string{"text": alt.Text}
	}
	return jsonAnswer(http.StatusOK, map[string]any{"data": map[string]any{"id": m.ID, "associated_metadata": shown}})
}

package xsim

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"image"
	_ "image/gif"  // for the size of GIFs
	_ "image/jpeg" // for the size of JPEGs
	_ "image/png"  // for the size of PNGs
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	uploadTTL              = 1_295_999 * time.Second // X's fifteen days
	maxAppendBytesDefault  = 4 << 20
	mediaProcessingDefault = 3 * time.Second
	maxCheckAfter          = 5 * time.Second
)

// upload is a chunked upload that is not finalized. After that, only the facts about
// its bytes stay; those of an abandoned upload stay until Reset.
type upload struct {
	announced string // its media_type
	total     int64  // bytes
	segments  map[int][]byte
}

// initialize begins a chunked upload.
func (s *Server) initialize(c *call) answer {
	var req struct {
		Category string `json:"media_category"`
		Type     string `json:"media_type"`
		Total    int64  `json:"total_bytes"`
	}
	if _, m, ok := c.readJSON(initializeSchema(), &req); !ok {
		return s.malformed(c, m)
	}
	if req.Type == "image/pjpeg" { // a name for it that is in no bytes
		req.Type = "image/jpeg"
	}
	if m, ok := fits(req.Category, req.Type, req.Total); !ok {
		return invalid(m)
	}
	if req.Total == 0 {
		return invalid(mistake{"total_bytes", "0", "the media is empty"})
	}
	m := s.addMedium(c, req.Category, uploadTTL)
	m.upload = &upload{announced: req.Type, total: req.Total, segments: map[int][]byte{}}
	return jsonAnswer(http.StatusOK, map[string]any{"data": struct {
		ID       string `json:"id"`
		MediaKey string `json:"media_key"`
		Expires  int64  `json:"expires_after_secs"`
	}{m.ID, m.MediaKey, int64(uploadTTL / time.Second)}})
}

// uploadOf finds the upload that the path names. The answer is for when there is none.
func (s *Server) uploadOf(c *call) (*medium, answer) {
	if !isID(c.id) {
		return nil, s.malformed(c, mistake{"id", c.id, "$.id: does not match the regex pattern ^[0-9]{1,19}$"})
	}
	if m := s.mediumOf(c, c.id); m != nil && m.upload != nil {
		return m, answer{}
	}
	return nil, invalid(mistake{"id", c.id, messageMediaIDs})
}

// tooLarge says that the edge will not let the segment pass. It measures what
// is sent, which of base64 is a third more than the bytes.
func (s *Server) tooLarge(c *call) bool {
	most := cmp.Or(s.MaxAppendBytes, maxAppendBytesDefault)
	if len(c.body) <= most {
		return false
	}
	object, _, err := s.readMedia(c, appendSchema())
	return err == nil && len(object["media"].(string)) > most
}

// appendSegment takes one segment, in any order. The same one may come again,
// which is all that a client can do whose answer was lost.
func (s *Server) appendSegment(c *call) answer {
	object, data, err := s.readMedia(c, appendSchema())
	if err != nil {
		return s.malformed(c, mistake{message: err.Error()})
	}
	m, refused := s.uploadOf(c)
	if m == nil {
		return refused
	}
	number, _ := object["segment_index"].(json.Number).Int64()
	index := int(number)
	old, again := m.upload.segments[index]
	switch {
	case again && !bytes.Equal(old, data):
		return invalid(mistake{"segment_index", strconv.Itoa(index), "the segment has come before, with other bytes"})
	case !again && int64(m.Size+len(data)) > m.upload.total:
		return invalid(mistake{"media", strconv.Itoa(m.Size + len(data)), fmt.Sprintf("the segments are more than total_bytes, %d", m.upload.total)})
	case !again:
		m.upload.segments[index], c.effect = data, true
		m.Segments, m.Size = m.Segments+1, m.Size+len(data)
		s.w.touch(m, &keptSegment{m.ID, index, data})
	}
	return jsonAnswer(http.StatusOK, map[string]any{"data": map[string]int64{"expires_at": m.ExpiresAt.Unix()}})
}

// finalize puts the segments together. What is missing may still be appended after
// a refusal.
func (s *Server) finalize(c *call) answer {
	if len(c.body) > 0 && (strings.TrimSpace(string(c.body)) != "{}" || !s.lenient(c, "a body {} at finalize")) {
		return s.malformed(c, mistake{message: "finalize takes no body"})
	}
	m, refused := s.uploadOf(c)
	if m == nil {
		return refused
	}
	segments, wrong, ok := m.upload.assemble(m.Size)
	if !ok {
		return invalid(wrong)
	}
	found := inspect(segments)
	if found.kind != m.upload.announced {
		return invalid(mistake{"media", found.kind, "the bytes are not of the media_type " + m.upload.announced})
	}
	if !strings.HasSuffix(m.Category, "_image") {
		m.processing = max(0, cmp.Or(s.MediaProcessing, mediaProcessingDefault))
	}
	if c.plan.kind() == FaultMediaFailed {
		m.failed, m.failure = true, c.plan.fault.Detail
	}
	m.take(found)
	s.showPicture(m, segments)
	m.upload, m.finalized, m.ExpiresAt, c.effect = nil, c.now, c.now.Add(cmp.Or(s.MediaTTL, mediaTTLDefault)), true
	s.w.touch(m)
	return m.answer(c.now)
}

// assemble returns the segments in their order, if they match the declared upload.
func (u *upload) assemble(size int) ([][]byte, mistake, bool) {
	list := make([][]byte, len(u.segments))
	for i := range list {
		segment, ok := u.segments[i]
		if !ok {
			return nil, mistake{"segment_index", strconv.Itoa(i), "the segment is missing"}, false
		}
		list[i] = segment
	}
	if int64(size) != u.total {
		return nil, mistake{"total_bytes", strconv.FormatInt(u.total, 10), fmt.Sprintf("the segments are %d bytes", size)}, false
	}
	return list, mistake{}, true
}

// content is what the uploaded bytes show.
type content struct {
	kind, sum     string
	width, height int
}

func (m *medium) take(found content) {
	m.Type, m.SHA256, m.width, m.height = found.kind, found.sum, found.width, found.height
}

func inspect(segments [][]byte) content {
	whole := func() io.Reader {
		readers := make([]io.Reader, len(segments))
		for i, segment := range segments {
			readers[i] = bytes.NewReader(segment)
		}
		return io.MultiReader(readers...)
	}
	head, hash := make([]byte, 512), sha256.New()
	n, _ := io.ReadFull(whole(), head) // Memory gives no error but a short end.
	for _, segment := range segments {
		hash.Write(segment)
	}
	found := content{kind: sniff(head[:n]), sum: hex.EncodeToString(hash.Sum(nil))}
	if strings.HasPrefix(found.kind, "image/") {
		if config, _, err := image.DecodeConfig(whole()); err == nil {
			found.width, found.height = config.Width, config.Height
		}
	}
	return found
}

// sniff adds to net/http's table the videos that it does not know.
func sniff(head []byte) string {
	const packet = 188 // bytes of an MPEG transport stream, each beginning with a G
	if len(head) > packet && head[0] == 'G' && head[packet] == 'G' {
		return "video/mp2t"
	}
	if len(head) >= 12 && string(head[4:8]) == "ftyp" {
		switch string(head[8:11]) {
		case "qt ":
			return "video/quicktime"
		case "avc", "das", "iso", "M4V", "mp4":
			return "video/mp4"
		}
	}
	return http.DetectContentType(head)
}

// status serves STATUS. X returns only what it has returned of the medium before, so an
// upload that is not finalized has none.
func (s *Server) status(c *call) answer {
	q := c.r.URL.Query()
	if m, ok := s.checkQuery(c); !ok {
		return s.malformed(c, m)
	}
	id := q.Get("media_id")
	m := s.mediumOf(c, id)
	if m == nil || m.upload != nil {
		return invalid(mistake{"media_id", id, messageMediaIDs})
	}
	m.StatusAsked++
	s.w.touch(m)
	return m.answer(c.now)
}

func (m *medium) state(now time.Time) string {
	passed := now.Sub(m.finalized)
	switch {
	case m.upload != nil:
		return MediaUploading
	case passed < m.processing/3:
		return MediaPending
	case passed < m.processing:
		return MediaInProgress
	case m.failed:
		return MediaFailed
	}
	return MediaSucceeded
}

// processingInfo is returned for media that need processing, or that failed without it.
type processingInfo struct {
	State      string           `json:"state"`
	CheckAfter int64            `json:"check_after_secs,omitempty"`
	Progress   int64            `json:"progress_percent,omitempty"`
	Error      *processingError `json:"error,omitempty"` // of v1.1
}

type processingError struct {
	Code    int    `json:"code"`
	Name    string `json:"name"`
	Message string `json:"message"`
}

func (m *medium) processingInfo(now time.Time) *processingInfo {
	if m.processing == 0 && !m.failed {
		return nil
	}
	// The time left is rounded up, so that who waits it out finds the next state.
	wait := func(left time.Duration) int64 {
		return int64((min(left, maxCheckAfter) + time.Second - 1) / time.Second)
	}
	info, passed := &processingInfo{State: m.state(now)}, now.Sub(m.finalized)
	switch info.State {
	case MediaPending:
		info.CheckAfter = wait(m.processing/3 - passed)
	case MediaInProgress:
		info.CheckAfter, info.Progress = wait(m.processing-passed), int64(100*passed/m.processing)
	case MediaSucceeded:
		info.Progress = 100
	case MediaFailed:
		if m.failure != "" {
			info.Error = &processingError{1, "InvalidMedia", m.failure}
		}
	}
	return info
}

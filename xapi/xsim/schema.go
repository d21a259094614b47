package xsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"slices"
	"strconv"
	"unicode/utf8"
)

// schema is as much of JSON Schema as X's request bodies use. The bodies are
// walked by hand because encoding/json would let wrong case and null pass.
type schema struct {
	kind     string // object, array, string, integer or boolean
	fields   map[string]schema
	required []string
	open     bool // properties beyond fields are allowed
	items    *schema
	id       bool // the pattern of all ids: 1 to 19 digits
	enum     []string
	min, max int64  // of an integer, or of the length of an array or string; max 0 is none
	message  string // X's own words for a bad value, if known
}

// decodeObject reads exactly one JSON object.
func decodeObject(body []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if v == nil {
		return nil, errors.New("the body is null")
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("more than one JSON value")
	}
	return v, nil
}

// readJSON reads a JSON body that fits the schema, also as the object it is.
func (c *call) readJSON(sc schema, into any) (map[string]any, mistake, bool) {
	kind, _, _ := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	object, err := decodeObject(c.body)
	if err != nil || kind != "application/json" {
		return nil, mistake{message: messageNotObject}, false
	}
	if m, ok := sc.check("", object); !ok {
		return nil, m, false
	}
	if err := json.Unmarshal(c.body, into); err != nil {
		return nil, mistake{message: messageNotObject}, false
	}
	return object, mistake{}, true
}

// check returns the first mistake, in a stable order.
func (sc schema) check(path string, v any) (mistake, bool) {
	bad := func(format string, args ...any) (mistake, bool) {
		message := sc.message
		if message == "" {
			message = "$." + path + ": " + fmt.Sprintf(format, args...)
		}
		return mistake{path, fmt.Sprint(v), message}, false
	}
	switch v := v.(type) {
	case map[string]any:
		if sc.kind == "object" {
			return sc.checkObject(path, v)
		}
	case []any:
		if sc.kind == "array" {
			return sc.checkArray(path, v)
		}
	case string:
		n := int64(utf8.RuneCountInString(v))
		switch {
		case sc.kind != "string":
		case sc.id && !isID(v):
			return bad("does not match the regex pattern ^[0-9]{1,19}$")
		case sc.enum != nil && !slices.Contains(sc.enum, v):
			return bad("does not have a value in the enumeration %v", sc.enum)
		case n < sc.min || sc.max > 0 && n > sc.max:
			return bad("must be %d to %d characters long", sc.min, sc.max)
		default:
			return mistake{}, true
		}
	case bool:
		if sc.kind == "boolean" {
			return mistake{}, true
		}
	case json.Number:
		n, err := v.Int64()
		if sc.kind == "integer" && err == nil {
			if n < sc.min || n > sc.max {
				return bad("must be %d to %d", sc.min, sc.max)
			}
			return mistake{}, true
		}
	}
	return bad("%s expected", sc.kind)
}

func (sc schema) checkObject(path string, object map[string]any) (mistake, bool) {
	join := func(name string) string {
		if path == "" {
			return name
		}
		return path + "." + name
	}
	names := make([]string, 0, len(object))
	for name := range object {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		field, known := sc.fields[name]
		if !known && sc.open {
			continue
		}
		if !known {
			return mistake{join(name), fmt.Sprint(object[name]),
				"$." + join(name) + ": is not defined in the schema and the schema does not allow additional properties"}, false
		}
		if m, ok := field.check(join(name), object[name]); !ok {
			return m, false
		}
	}
	for _, name := range sc.required {
		if _, ok := object[name]; !ok {
			return mistake{join(name), "", "$." + join(name) + ": is missing but it is required"}, false
		}
	}
	return mistake{}, true
}

func (sc schema) checkArray(path string, array []any) (mistake, bool) {
	if n := int64(len(array)); n < sc.min || sc.max > 0 && n > sc.max {
		return mistake{path, strconv.Itoa(len(array)), fmt.Sprintf("$.%s: must have %d to %d items", path, sc.min, sc.max)}, false
	}
	for _, v := range array {
		if m, ok := sc.items.check(path, v); !ok {
			return m, false
		}
	}
	return mistake{}, true
}

// isID says whether v matches ^[0-9]{1,19}$, the pattern of posts, users and media.
func isID(v string) bool {
	if len(v) < 1 || len(v) > 19 {
		return false
	}
	for _, b := range []byte(v) {
		if b < '0' || b > '9' {
			return false
		}
	}
	return true
}

// createPostSchema is CreatePostsRequest of OpenAPI 2.167.
func createPostSchema() schema {
	text, flag := schema{kind: "string"}, schema{kind: "boolean"}
	id := func(message string) schema { return schema{kind: "string", id: true, message: message} }
	list := func(items schema, least, most int64) schema {
		return schema{kind: "array", items: &items, min: least, max: most}
	}
	link := schema{kind: "object", required: []string{"url"}, fields: map[string]schema{"url": text}}
	settings := schema{kind: "string", enum: []string{"following", "mentionedUsers", "subscribers", "verified"}}
	return schema{kind: "object", fields: map[string]schema{
		"text": text, "card_uri": text, "direct_message_deep_link": text,
		"community_id":   id(""),
		"quote_tweet_id": id(messageQuoteID),
		"reply_settings": settings,
		"made_with_ai":   flag, "paid_partnership": flag, "nullcast": flag,
		"share_with_followers": flag, "for_super_followers_only": flag,
		"edit_options": {kind: "object", required: []string{"previous_post_id"}, fields: map[string]schema{"previous_post_id": id("")}},
		"geo":          {kind: "object", required: []string{"place_id"}, fields: map[string]schema{"place_id": text}},
		"reply": {kind: "object", required: []string{"in_reply_to_tweet_id"}, fields: map[string]schema{
			"in_reply_to_tweet_id":         id(messageReplyID),
			"exclude_reply_user_ids":       list(text, 0, 0),
			"auto_populate_reply_metadata": flag,
		}},
		"poll": {kind: "object", required: []string{"options", "duration_minutes"}, fields: map[string]schema{
			"options":          list(schema{kind: "string", min: 1, max: 25}, 2, 4),
			"duration_minutes": {kind: "integer", min: 5, max: 10080},
			"reply_settings":   settings,
		}},
		"media": {kind: "object", required: []string{"media_ids"}, fields: map[string]schema{
			"media_ids":        list(id(messageMediaIDs), 1, 4),
			"tagged_user_ids":  list(id(messageTaggedIDs), 0, 10),
			"preview_media_id": id(""),
			"title":            text, "description": text, "embeddable": flag,
			"call_to_actions": {kind: "object", fields: map[string]schema{
				"visit_site": link, "watch_now": link,
				"app_install": {kind: "object", fields: map[string]schema{
					"app_store_id": text, "ipad_app_store_id": text, "play_store_id": text,
				}},
			}},
		}},
	}}
}

// metadataSchema is CreateMediaMetadataRequest, which does not forbid properties
// it does not list.
func metadataSchema() schema {
	return schema{kind: "object", open: true, required: []string{"id"}, fields: map[string]schema{
		"id": {kind: "string", id: true, message: messageMediaIDs},
		"metadata": {kind: "object", open: true, fields: map[string]schema{
			"alt_text": {kind: "object", open: true, required: []string{"text"}, fields: map[string]schema{
				"text": {kind: "string", max: 1000},
			}},
		}},
	}}
}

// uploadSchema is MediaUploadRequest.
func uploadSchema() schema {
	return schema{kind: "object", required: []string{"media", "media_category"}, fields: map[string]schema{
		"media":             {kind: "string"},
		"additional_owners": {kind: "string"},
		"media_category": {kind: "string", enum: []string{
			"tweet_image", "tweet_video", "tweet_gif", "dm_image", "dm_video", "dm_gif", "subtitles",
		}},
	}}
}

// initializeSchema is InitializeMediaUploadRequest, which requires nothing. Here the
// three that say what will come are required: nobody has seen X do without.
func initializeSchema() schema {
	return schema{kind: "object", required: []string{"media_category", "media_type", "total_bytes"}, fields: map[string]schema{
		"additional_owners": {kind: "array", items: &schema{kind: "string", id: true}},
		"shared":            {kind: "boolean"},
		"total_bytes":       {kind: "integer", max: 17_179_869_184},
		"media_category": {kind: "string", enum: []string{
			"amplify_video", "tweet_gif", "tweet_image", "tweet_video", "dm_gif", "dm_image", "dm_video", "subtitles",
		}},
		"media_type": {kind: "string", enum: []string{
			"video/mp4", "video/webm", "video/mp2t", "video/quicktime", "text/srt", "text/vtt", "image/jpeg", "image/gif", "image/bmp",
			"image/png", "image/webp", "image/pjpeg", "image/tiff", "model/gltf-binary", "model/vnd.usdz+zip",
		}},
	}}
}

// appendSchema is AppendMediaUploadRequest.
func appendSchema() schema {
	return schema{kind: "object", required: []string{"media", "segment_index"}, fields: map[string]schema{
		"media":         {kind: "string"},
		"segment_index": {kind: "integer", max: 999},
	}}
}

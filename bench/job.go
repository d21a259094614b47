package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"time"
)

// job is one request to have posts appear.
type job struct {
	Account string
	ID      string
	Posts   int       // length of the thread
	Images  int       // of each post
	At      time.Time // publish_at; zero for now
	sent    time.Time // when it was handed in, where that is measured
}

// text is unique for each post of a run.
func (j *job) text(post int) string {
	return fmt.Sprintf("%s of %s, post %d of %d", j.ID, j.Account, post+1, j.Posts)
}

// body is the job as a producer sends it to jetpost.
func (j *job) body() ([]byte, error) {
	posts := make([]map[string]any, j.Posts)
	for i := range posts {
		posts[i] = map[string]any{"text": j.text(i)}
		var media []map[string]any
		for n := range j.Images {
			data, err := picture(i*j.Images + n)
			if err != nil {
				return nil, err
			}
			media = append(media, map[string]any{"data": data})
		}
		if media != nil {
			posts[i]["media"] = media
		}
	}
	request := map[string]any{"id": j.ID, "posts": posts}
	if !j.At.IsZero() {
		request["publish_at"] = j.At.UTC().Format(time.RFC3339Nano)
	}
	return json.Marshal(request)
}

const pictureSide = 64 // pixels

// picture is a small PNG, base64; no other number gives the same one.
func picture(n int) (string, error) {
	img := image.NewGray(image.Rect(0, 0, pictureSide, pictureSide))
	for i := range img.Pix {
		img.Pix[i] = byte((i*7 + n*13) % 251)
	}
	img.SetGray(0, 0, color.Gray{Y: byte(n)})
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		return "", fmt.Errorf("make picture: %w", err)
	}
	return base64.StdEncoding.EncodeToString(out.Bytes()), nil
}

// makeJobs makes jobs in turn for each account. The tag distinguishes their ids from
// those of other rounds.
func makeJobs(tag string, n, posts int, accounts []string) []*job {
	jobs := make([]*job, n)
	for i := range jobs {
		jobs[i] = &job{Account: accounts[i%len(accounts)], ID: fmt.Sprintf("%s-%d", tag, i), Posts: posts}
	}
	return jobs
}

func postsOf(jobs []*job) (n int) {
	for _, j := range jobs {
		n += j.Posts
	}
	return n
}

func accountNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("a%05d", i+1)
	}
	return names
}

// importLine is an account as 'jetpost accounts import' takes it.
func importLine(name string, expires time.Time) string {
	return fmt.Sprintf(`{"name":%q,"access_token":"access-of-%s","refresh_token":"refresh-of-%s","expires_at":%q}`+"\n",
		name, name, name, expires.UTC().Format(time.RFC3339))
}

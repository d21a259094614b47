package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/jpeg"
	"image/png"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	// screensVariable names the directory that gets a picture of each screen.
	screensVariable = "JETPOST_SCREENS"
	// mostHigh bounds a picture, and mostColours its colours, so that all stay small.
	mostHigh    = 1400 // pixels
	mostColours = 64
	// screensPassword is that of the user who looks.
	screensPassword = "correct horse battery"
)

// shop is an installation to take pictures of.
type shop struct {
	*site
	pages   string // the address of the dashboard
	login   bool   // it asks who it is
	account string // whose page is taken
	draft   string // that somebody writes
	// requests are the paths of those that are taken, by the name of the picture.
	requests map[string]string
}

// TestScreens takes a picture of every screen, in three states, in light and dark, wide and
// on a phone, where none scrolls sideways. It is run by scripts/screens.
func TestScreens(t *testing.T) {
	t.Parallel()
	dir := os.Getenv(screensVariable)
	if dir == "" {
		t.Skip("skipped: it takes minutes, and people look at the pictures; run make screenshots")
	}
	testkit.Must(t, os.MkdirAll(dir, 0o755))
	browser := newBrowser(t)
	for state, open := range map[string]func(*testing.T) shop{"empty": emptyShop, "busy": busyShop, "trouble": troubledShop} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			for _, scheme := range []string{"light", "dark"} {
				for _, width := range []int64{desktopWidth, phoneWidth} {
					p := browser.person(t, width)
					p.prefers(scheme)
					p.round(s, func(screen string) {
						p.hopes()
						p.fits()
						p.shoot(filepath.Join(dir, fmt.Sprintf("%s-%s-%s-%d.png", screen, state, scheme, width)))
					})
				}
			}
		})
	}
}

// round opens every screen.
func (p *person) round(s shop, shoot func(screen string)) {
	p.t.Helper()
	at := s.pages + "/dashboard/"
	if s.login {
		p.open(at)
		shoot("login")
		p.types(`//input[@name="name"]`, "maria")
		p.types(`//input[@name="password"]`, screensPassword)
		p.click(`//main//button[.="Log in"]`)
		p.shows("Needs a person")
	}
	screens := map[string]string{
		"overview": "", "calendar": "calendar", "month": "calendar?view=month", "requests": "requests", "accounts": "accounts", "account": "accounts/" + s.account,
		"limits": "limits", "dead-letters": "dead-letters", "dead-letters-failed": "dead-letters?kind=failed", "workers": "workers", "users": "users", "audit": "audit",
	}
	maps.Copy(screens, s.requests)
	for _, screen := range slices.Sorted(maps.Keys(screens)) {
		p.open(at + screens[screen])
		shoot(screen)
	}
	p.open(at + "compose?account=" + s.account)
	if s.draft != "" {
		p.types(`//textarea[@name="text-0"]`, s.draft)
		p.shows(s.draft[:20]) // in the preview
	}
	shoot("compose")
	p.open(at + "accounts/" + s.account)
	p.click(`//button[contains(., "Make a link")]`)
	p.shows("A link for")
	shoot("link-made")
	p.click(`//a[.="Open it here"]`)
	p.shows("Connect your X account")
	shoot("link")
}

// emptyShop has done nothing yet.
func emptyShop(t *testing.T) shop {
	t.Helper()
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, Accounts: []string{"northwind"}})
	s.Worker("worker-1")
	return shop{site: s, pages: s.dashboard(), account: "northwind"}
}

// busyShop is one in which everything goes as it should.
func busyShop(t *testing.T) shop {
	t.Helper()
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, Accounts: shopAccounts})
	s.Worker("worker-1")
	s.Worker("worker-2")
	s.users()
	want := map[store.Key]jetpost.State{}
	s.send(want, jetpost.StatePublished, "northwind", jetpost.Request{ID: "winter-coats-launch", Metadata: map[string]string{"campaign": "winter 2026", "author": "Maria"}, Posts: []jetpost.Post{
		{Text: "The winter coats are here. ❄️ Cut in Porto, lined with recycled wool, made to be mended. All sizes: https://www.example.com/northwind/winter/coats?from=thread", Media: []jetpost.Media{s.photo(0, "Three long coats in blue, green and grey on a wooden rail"), s.photo(1, "The lining of a coat, with a name tag sewn in")}},
		{Text: "How they are made: a short film comes on Thursday. Until then, ask us anything."},
		{Text: "Which colour shall we make next?", Poll: &jetpost.Poll{Options: []string{"Moss green", "Brick red", "Night blue"}, DurationMinutes: 1440}},
	}})
	for i, text := range shopTexts {
		account := shopAccounts[i%len(shopAccounts)]
		s.send(want, jetpost.StatePublished, account, jetpost.Request{ID: fmt.Sprintf("note-%02d", i+1), Posts: []jetpost.Post{{Text: text}}})
	}
	for i := range 24 {
		text := shopTexts[(i*5+2)%len(shopTexts)]
		at := time.Now().UTC().Truncate(24 * time.Hour).Add(time.Duration(24*(1+i/3)+[]int{9, 13, 18}[i%3]) * time.Hour)
		job := jetpost.Request{ID: fmt.Sprintf("plan-%02d", i+1), PublishAt: at, Posts: []jetpost.Post{{Text: "Soon: " + text}}}
		if i%3 == 0 {
			job.Posts = append(job.Posts, jetpost.Post{Text: "More of it in the evening.", Media: []jetpost.Media{s.photo(i, "A shop window at night")}})
		}
		s.send(want, jetpost.StateScheduled, shopAccounts[i*5%len(shopAccounts)], job)
	}
	s.rests(want)
	return shop{
		site: s, pages: s.dashboard("--require-login"), login: true, account: "northwind",
		draft:    "Last call: the workshop on Saturday has four places left. Bring a jacket, leave with it mended. https://www.example.com/northwind/workshop",
		requests: map[string]string{"request": "requests/northwind/winter-coats-launch", "request-scheduled": "requests/northwind/plan-01"},
	}
}

// troubledShop is one in which much needs a person.
func troubledShop(t *testing.T) shop {
	t.Helper()
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, Minute: 20 * time.Millisecond, Accounts: shopAccounts})
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{
		{Kind: xsim.FaultRefuseText, Text: "miracle", Detail: "Your post was not sent: it may break our rules about misleading health claims."},
		{Kind: xsim.FaultCut, After: true, Endpoint: xsim.EndpointCreatePost, Text: "sunrise", Times: 1},
		{Kind: xsim.FaultTimelineLag, DelayMS: (10 * time.Minute).Milliseconds(), Account: "kyoto_cycling"},
		{Kind: xsim.FaultStatus, Status: 429, Endpoint: xsim.EndpointCreatePost, Account: "harbour-radio"},
	}))
	s.Worker("worker-1")
	silent := s.Worker("worker-2")
	s.users()
	for _, args := range [][]string{{"pause", "daily-bread", "--until", "+72h", "--reason", "Rebranding: nothing until the new name is public"}} {
		if code, _, stderr := s.Run(args...); code != exitOK {
			t.Fatalf("%s: %s", args, stderr)
		}
	}
	want := map[store.Key]jetpost.State{}
	s.send(want, jetpost.StatePublished, "northwind", jetpost.Request{ID: "good-morning", Posts: []jetpost.Post{{Text: shopTexts[0]}}})
	s.send(want, jetpost.StateFailed, "northwind", jetpost.Request{ID: "vitamin-thread", Metadata: map[string]string{"campaign": "new year"}, Posts: []jetpost.Post{
		{Text: "Five things about vitamins that our pharmacist tells every customer.", Media: []jetpost.Media{s.photo(2, "A shelf of brown glass bottles")}},
		{Text: "1. No vitamin is a miracle, whatever the label says."}, {Text: "2. Most of us get enough of most of them."},
	}})
	s.send(want, jetpost.StateFailed, "northwind", jetpost.Request{ID: "too-long", Posts: []jetpost.Post{{Text: strings.Repeat("A sentence that goes on for a while. ", 12)}}})
	s.send(want, jetpost.StateUnknown, "kyoto_cycling", jetpost.Request{ID: "sunrise-ride", Posts: []jetpost.Post{{Text: "The sunrise ride starts at six, at the north gate. 🚲"}}})
	s.send(want, jetpost.StateHeld, "harbour-radio", jetpost.Request{ID: "evening-programme", Posts: []jetpost.Post{{Text: "Tonight at eight: three hours of music from the harbour."}}})
	s.send(want, jetpost.StateFailed, "northwind", jetpost.Request{ID: "missing-picture", Posts: []jetpost.Post{{Text: "The catalogue is out.", Media: []jetpost.Media{{Object: "catalogue-cover", Alt: "The cover of the catalogue"}}}}})
	s.send(want, "", "daily-bread", jetpost.Request{ID: "sourdough-week", Posts: []jetpost.Post{{Text: "Sourdough week begins today. 🍞"}}})
	s.send(want, jetpost.StateScheduled, "northwind", jetpost.Request{ID: strings.Repeat("W", 128), PublishAt: time.Now().Add(30 * time.Hour), Posts: []jetpost.Post{{Text: strings.Repeat("Donaudampfschifffahrt", 12)}}})
	s.send(want, jetpost.StateScheduled, longName, jetpost.Request{ID: "harvest", PublishAt: time.Now().Add(26 * time.Hour), Posts: []jetpost.Post{{Text: shopTexts[3]}}})
	s.Sim.RevokeConsent("atelier-lumiere")
	s.send(want, jetpost.StateHeld, "atelier-lumiere", jetpost.Request{ID: "opening-night", Posts: []jetpost.Post{{Text: "Vernissage ce soir à 19 h. Entrée libre."}}})
	for account, body := range map[string]string{"northwind": `{"id":"no-posts","posts":[]}`, "nortwind": `{"id":"misspelt","posts":[{"text":"Hello"}]}`} {
		_, err := s.Conn.JS.Publish(t.Context(), "publish.request."+account, []byte(body))
		testkit.Must(t, err)
	}
	s.rests(want)
	silent.Kill()
	return shop{
		site: s, pages: s.dashboard("--require-login"), login: true, account: "atelier-lumiere", draft: strings.Repeat("Far too much to say for one post. ", 10),
		requests: map[string]string{
			"request-failed": "requests/northwind/vitamin-thread", "request-doubtful": "requests/kyoto_cycling/sunrise-ride", "request-waits": "requests/atelier-lumiere/opening-night",
			"request-paused": "requests/daily-bread/sourdough-week", "request-long": "requests/northwind/" + strings.Repeat("W", 128), "account-paused": "accounts/daily-bread",
			"send-again": "replay", "delete": "requests/northwind/vitamin-thread/unpublish",
		},
	}
}

// longName is as long as the name of an account may be.
const longName = "the_friends_of_the_botanical_garden_and_its_very_old_greenhouse"

var (
	shopAccounts = []string{"northwind", "atelier-lumiere", "daily-bread", "kyoto_cycling", "harbour-radio", longName}
	shopTexts    = []string{
		"Good morning. The ovens have been on since four. ☕️🥐", "We mended 212 coats this autumn, and threw away two.",
		"مرحبا بكم في معرض الشتاء، من السبت إلى الثلاثاء، والدخول مجاني للجميع.", "The old greenhouse opens again on Sunday, with soup.",
		"Read how it is made: https://www.example.com/northwind/journal/how-a-coat-is-made-from-fleece-to-button", "👩‍👩‍👧‍👦🏳️‍🌈🇵🇹 Everybody is welcome.",
		"Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz", "Tomorrow at six, at the north gate. 🚲", "Tonight at eight: questions and answers with the team.",
		"שבת שלום לכולם, נתראה ביום ראשון.", "Thank you for 1,000 subscribers!",
	}
)

// users makes those of the dashboard: maria looks at it.
func (s *site) users() {
	s.T.Helper()
	workers, err := client.New(s.Conn.Conn)
	testkit.Must(s.T, err)
	for name, role := range map[string]jetpost.Role{"maria": jetpost.RoleAdmin, "jonas.lindqvist": jetpost.RoleEditor, "intern@northwind.example": jetpost.RoleViewer} {
		_, err := workers.UserAdd(s.T.Context(), jetpost.UserAdd{Name: name, Role: role, Password: screensPassword})
		testkit.Must(s.T, err)
	}
}

// send sends a request, and notes in which state it shall come to rest; "" is any.
func (s *site) send(want map[store.Key]jetpost.State, state jetpost.State, account string, r jetpost.Request) {
	s.T.Helper()
	body, err := json.Marshal(r)
	testkit.Must(s.T, err)
	_, err = s.Conn.JS.Publish(s.T.Context(), "publish.request."+account, body)
	testkit.Must(s.T, err)
	want[store.Key{Account: account, ID: r.ID}] = state
}

// rests waits until each request is in its state.
func (s *site) rests(want map[store.Key]jetpost.State) {
	s.T.Helper()
	var last string
	defer func() {
		if s.T.Failed() {
			s.T.Log(last)
		}
	}()
	testkit.Eventually(s.T, "each request to come to rest", func() bool {
		for key, state := range want {
			record, err := s.Ledger.Request(s.T.Context(), key)
			if last = fmt.Sprintf("%s is %s, want %s, %v", key, record.Status.State, state, err); err != nil || state != "" && record.Status.State != state {
				return false
			}
		}
		return true
	})
}

// photo stores a picture of hills.
func (s *site) photo(nth int, alt string) jetpost.Media {
	s.T.Helper()
	const width, height = 640, 420
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	shade := func(x, y, hue float64) color.RGBA {
		part := func(shift float64) uint8 { return uint8(128 + 100*math.Sin(hue+shift)*(1-y/height/2) + 20*y/height) }
		return color.RGBA{part(0), part(1), part(2.2), 255}
	}
	for x := range width {
		for y := range height {
			fx, fy, hue := float64(x), float64(y), float64(nth)*1.3
			for hill := range 3 {
				if fy > 170+70*float64(hill)+40*math.Sin(fx/(90-20*float64(hill))+hue+float64(hill)) {
					hue += .7
				}
			}
			img.SetRGBA(x, y, shade(fx, fy, hue))
		}
	}
	var out bytes.Buffer
	testkit.Must(s.T, jpeg.Encode(&out, img, nil))
	object, err := publishers.New(s.Conn.JS, s.Conn.Names).PutMedia(s.T.Context(), &out)
	testkit.Must(s.T, err)
	return jetpost.Media{Object: object, Alt: alt}
}

// shoot keeps a picture of the page.
func (p *person) shoot(path string) {
	p.t.Helper()
	testkit.Eventually(p.t, "the page to be live, if it ever is", func() bool {
		is, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool](`!document.querySelector("#live:not(.on)")`))
		return err == nil && is
	})
	_, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100)) // loads and paints what is below the screen
	testkit.Must(p.t, err)
	_, err = chromedp.Run(p.ctx, chromedp.Evaluate[chromedp.Void](`Promise.all([...document.images].map(i => i.decode().catch(() => 0)))`, chromedp.EvalAwaitPromise))
	testkit.Must(p.t, err)
	picture, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
	testkit.Must(p.t, err)
	testkit.Must(p.t, os.WriteFile(path, small(p.t, picture), 0o644))
}

// small is the upper part of a picture in its most frequent colours, which are most of a page.
func small(t testkit.T, picture []byte) []byte {
	t.Helper()
	whole, err := png.Decode(bytes.NewReader(picture))
	testkit.Must(t, err)
	bounds := whole.Bounds()
	bounds.Max.Y = min(bounds.Max.Y, bounds.Min.Y+mostHigh)
	pixels := image.NewRGBA(bounds)
	draw.Draw(pixels, bounds, whole, bounds.Min, draw.Src)
	at := func(i int) color.RGBA { return color.RGBA{pixels.Pix[4*i], pixels.Pix[4*i+1], pixels.Pix[4*i+2], 255} }
	count := map[color.RGBA]int{}
	for i := range len(pixels.Pix) / 4 {
		count[at(i)]++
	}
	all := slices.SortedFunc(maps.Keys(count), func(a, b color.RGBA) int {
		return cmp.Or(count[b]-count[a], strings.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	})
	palette := coloursOf(all)
	index := map[color.RGBA]uint8{}
	for _, is := range all {
		index[is] = uint8(palette.Index(is))
	}
	few := image.NewPaletted(bounds, palette)
	for i := range few.Pix {
		few.Pix[i] = index[at(i)]
	}
	var out bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	testkit.Must(t, encoder.Encode(&out, few))
	return out.Bytes()
}

// coloursOf are a few of the colours, the first of them and what is far from those.
func coloursOf(all []color.RGBA) (palette color.Palette) {
	const apart = 14 // at least, as a distance of two colours
	for _, is := range all {
		near := slices.ContainsFunc(palette, func(c color.Color) bool {
			of, _ := c.(color.RGBA)
			r, g, b := int(of.R)-int(is.R), int(of.G)-int(is.G), int(of.B)-int(is.B)
			return r*r+g*g+b*b < apart*apart
		})
		if len(palette) < 8 || !near {
			palette = append(palette, is)
		}
		if len(palette) == mostColours {
			break
		}
	}
	return palette
}

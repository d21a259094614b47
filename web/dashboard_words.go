package web

import (
	"bytes"
	"cmp"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/xapi"
)

// readDashboard reads the dashboard's templates, each within its layout.
func readDashboard() (map[string]*template.Template, error) {
	functions := template.FuncMap{"words": func(text string) string { return cut(text, maxShownWords) }, "operation": uuid.NewString, "field": func() string { return operationField }, "count": thousands, "role": roleWords}
	pages := make(map[string]*template.Template)
	names := []string{"overview", "requests", "request", "unpublish", "accounts", "account", "connect", "limits", "deadletters", "failed", "disconnect", "login", "users", "audit", "bulk", "workers", "calendar", "compose"}
	for _, name := range names {
		page, err := template.New("layout.html").Funcs(functions).ParseFS(templates, "templates/dashboard/layout.html", "templates/dashboard/parts.html", "templates/dashboard/"+name+".html")
		if err != nil {
			return nil, err
		}
		pages[name+".html"] = page
	}
	return pages, nil
}

// render writes a whole page or, should that fail, none.
func (d *Dashboard) render(w http.ResponseWriter, status int, p shown) {
	var body bytes.Buffer
	if err := d.pages[p.name].ExecuteTemplate(&body, "layout.html", p.data); err != nil {
		d.cfg.Log.Error("dashboard.page_failed", "page", p.name, "error", err)
		http.Error(w, "This page cannot be shown.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // the person has left
}

// cut shortens a text to so many characters.
func cut(text string, most int) string {
	runes := []rune(text)
	if len(runes) <= most {
		return text
	}
	return string(runes[:most-1]) + "…"
}

// thousands is a number as people read it: 12,345.
func thousands(n int) string {
	digits := strconv.Itoa(n)
	for at := len(digits) - 3; at > 0 && digits[at-1] != '-'; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return digits
}

// roleWords are a role with what it may do, for a list to choose from.
func roleWords(role jetpost.Role) string {
	switch role {
	case jetpost.RoleViewer:
		return "viewer: only looks"
	case jetpost.RoleEditor:
		return "editor: publishes"
	case jetpost.RoleAdmin:
		return "admin: everything"
	}
	return string(role)
}

// endpointWords are what people read for one of X's endpoints.
func endpointWords(endpoint string) string {
	words := map[xapi.Endpoint]string{
		xapi.EndpointCreatePost:      "New posts",
		xapi.EndpointDeletePost:      "Deletions of posts",
		xapi.EndpointUploadMedia:     "Uploads of pictures",
		xapi.EndpointInitializeMedia: "Uploads of videos, begun",
		xapi.EndpointAppendMedia:     "Uploads of videos, in parts",
		xapi.EndpointFinalizeMedia:   "Uploads of videos, ended",
		xapi.EndpointMediaStatus:     "Looks at uploads",
		xapi.EndpointMediaMetadata:   "Descriptions of pictures",
		xapi.EndpointMe:              "Looks at accounts",
		xapi.EndpointUserPosts:       "Looks at timelines",
		xapi.EndpointToken:           "Renewals of access",
		xapi.EndpointRevoke:          "Ends of access",
	}[xapi.Endpoint(endpoint)]
	return cmp.Or(words, endpoint)
}

// moment is a time as people read it, and as programs do.
type moment struct{ Machine, Near, Clock string }

// At is a time; nil where there is none.
func (p page) At(t time.Time) *moment {
	if t.IsZero() {
		return nil
	}
	machine := t.UTC().Format(time.RFC3339)
	t = t.In(p.zone)
	layout := "2 Jan 15:04 MST"
	if t.Year() != p.now.In(p.zone).Year() {
		layout = "2 Jan 2006 15:04 MST"
	}
	near := "now"
	switch d := t.Sub(p.now); {
	case d >= time.Minute:
		near = "in " + span(d)
	case d <= -time.Minute:
		near = span(-d) + " ago"
	case d > 0:
		near = "within a minute"
	case d < 0:
		near = "just now"
	}
	return &moment{machine, near, t.Format(layout)}
}

// span is roughly how long something takes.
func span(d time.Duration) string {
	switch {
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}

// said is what was just done, as the address of the page tells it.
func said(r *http.Request) string {
	return map[string]string{
		"compose":         "It is sent. This page shows how it goes live.",
		"reschedule":      "It has another time.",
		"cancel":          "Cancelled. What is live stays live.",
		"replay":          "It is back in its account's queue.",
		"reconcile":       "The account's timeline is checked for the post.",
		"posted":          "Settled: the post is live.",
		"not-posted":      "Settled: the post is not live.",
		"unpublish":       "Its posts are being deleted on X.",
		"pause":           "The account is paused.",
		"resume":          "The account goes on.",
		"refresh":         "A worker renews the access now.",
		"disconnect":      "The account is disconnected, and X takes its tokens no more.",
		"disconnect-here": "The account is disconnected here. X did not confirm that it takes its tokens no more: try again, or withdraw the app's access on X.",
		"add":             "The user was added. Tell them the address of these pages, the name and the password yourself.",
		"role":            "The role was set, from the next page on.",
		"password":        "The password was set, and the user is logged out everywhere.",
		"remove":          "The user was removed, and is logged out everywhere.",
		"app-pause":       "No account posts anything now. What waits stays in its place.",
		"app-resume":      "Posting goes on.",
	}[r.URL.Query().Get("done")]
}

// reasonWords are what people read for a code, as a part of a sentence.
func reasonWords(code jetpost.Code) string {
	if words := reasons()[code]; words != "" {
		return words
	}
	return strings.ReplaceAll(string(code), "_", " ")
}

func reasons() map[jetpost.Code]string {
	return map[jetpost.Code]string{
		jetpost.CodeInvalidRequest:   "the message breaks the contract",
		jetpost.CodeAccountUnknown:   "no account of that name is connected",
		jetpost.CodeIdentityConflict: "the id was used before for another request",
		jetpost.CodeSetAside:         "workers failed on it again and again",

		jetpost.CodeRateLimited:        "the account has used up its window at X",
		jetpost.CodePostingLimit:       "the limit for each account is reached",
		jetpost.CodeAppPaused:          "the whole app is paused",
		jetpost.CodeAccountPaused:      "somebody has paused the account",
		jetpost.CodeXUnavailable:       "X cannot be reached, or fails",
		jetpost.CodeMediaUnavailable:   "a media file cannot be read just now",
		jetpost.CodeMediaProcessing:    "X works on a media file",
		jetpost.CodeTokenRefreshFailed: "X did not renew the account's token just now",
		jetpost.CodeNeedsNewerWorker:   "it needs newer workers",
		jetpost.CodeReconciling:        "X's answer was lost, and the timeline is checked for the post",

		jetpost.CodeAccountSuspended:      "X has suspended the account",
		jetpost.CodeAccountLocked:         "X has locked the account until its owner logs in",
		jetpost.CodeAccountUnauthorized:   "X does not accept the account's tokens",
		jetpost.CodeAccountScopeMissing:   "the account was connected without a permission that is needed",
		jetpost.CodeAccountRefused:        "X refused several requests of the account",
		jetpost.CodeAccountReauthRequired: "the account must be connected again",
		jetpost.CodeKeyUnavailable:        "no configured key opens the account's token",
		jetpost.CodePoison:                "workers died on it again and again",

		jetpost.CodeRefusedByX:   "X does not accept this post",
		jetpost.CodeDuplicate:    "X takes the post for a repeat of an earlier one",
		jetpost.CodeMediaInvalid: "a media file is of no kind that X accepts, or too large",
		jetpost.CodeMediaChanged: "a media file is not the one that was accepted",
		jetpost.CodeTextTooLong:  "a post is too long for an account without a subscription",
		jetpost.CodeSameText:     "another account posts the same text within a day",
		jetpost.CodeExpired:      "it was too late for the first post",
		jetpost.CodeBodyLost:     "its text was lost when the database was restored",

		jetpost.CodeOutcomeUnknown: "nobody knows whether the post is live",

		jetpost.CodePausedByHand:      "somebody has paused it",
		jetpost.CodeAppRateLimited:    "the app has used up its window at X",
		jetpost.CodeUsageCapped:       "X's usage cap is reached",
		jetpost.CodeCreditsDepleted:   "the credits at X are used up",
		jetpost.CodeSpendCapReached:   "the spending limit at X is reached",
		jetpost.CodeClientNotEnrolled: "the X app has no package or environment",
		jetpost.CodeAppReadOnly:       "the X app may not write",
		jetpost.CodeAppSuspended:      "X has suspended the app",
		jetpost.CodeClientForbidden:   "X does not let this app use what it calls",
		jetpost.CodeAppRefused:        "X refused posts of several accounts in the same words",
		jetpost.CodeXOutage:           "X fails call after call",
		jetpost.CodeAppMisconfigured:  "X does not accept the app's client id or secret",
	}
}

package xsim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// X's own words for the refusals that depend on the post. Clients see them as
// the detail of a 403.
const (
	detailDuplicate     = "You are not allowed to create a Tweet with duplicate content."
	detailReplyRule     = "Reply to this conversation is not allowed because you have not been mentioned or otherwise engaged by the author of the post you are replying to."
	detailQuoteRule     = "Quoting this post is not allowed because you have not been mentioned or are not part of the conversation thread of the post you are quoting."
	detailParentGone    = "You attempted to reply to a Tweet that is deleted or not visible to you."
	detailCashtags      = "Posts are limited to a maximum of one cashtag ($SYMBOL)"
	detailTooLong       = "Your Tweet text is too long. For more information on how Twitter determines text length see https://github.com/twitter/twitter-text."
	detailNotPermitted  = "You are not permitted to perform this action."
	messageExclusive    = "You can only provide one of poll or quote_tweet_id or direct_message_deep_link or media or card_uri."
	messageMediaIDs     = "Your media IDs are invalid."
	messageReplyID      = "Your reply tweet ID is invalid."
	messageQuoteID      = "Your quote tweet ID is invalid."
	messageTaggedIDs    = "Your tagged user IDs are invalid."
	messageNotObject    = "Request body must be a JSON object."
	typeInvalidRequest  = "https://api.x.com/2/problems/invalid-request"
	typeResourceMissing = "https://api.x.com/2/problems/resource-not-found"
	typeNotAuthorized   = "https://api.x.com/2/problems/not-authorized-for-resource"
	typeInternalError   = "https://api.x.com/2/problems/internal-error"
)

const (
	jsonType    = "application/json; charset=utf-8"
	problemType = "application/problem+json"
	htmlType    = "text/html; charset=utf-8"
)

func jsonAnswer(status int, v any) answer {
	return answer{status: status, contentType: jsonType, body: encode(v)}
}

// encode writes JSON as X does, with <, > and & as they are. The values are all
// this package's own, so an error is a bug in it.
func encode(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("xsim: encode answer: %v", err))
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}

func rawProblem(status int, body string) answer {
	return answer{status: status, contentType: problemType, body: []byte(body)}
}

// forbidden is the 403 that carries a rule's words.
func forbidden(detail string) answer {
	return refusal(http.StatusForbidden, detail)
}

// refusal is the problem of 2.167 that fits a rule which was broken.
func refusal(status int, detail string) answer {
	return rawProblem(status, fmt.Sprintf(`{"detail":%s,"type":%s,"title":%s,"status":%d,"resource_type":"post"}`,
		encode(detail), encode(typeNotAuthorized), encode(http.StatusText(status)), status))
}

func internalError(status int, detail string) answer {
	return rawProblem(status, fmt.Sprintf(`{"title":%s,"detail":%s,"type":%s,"status":%d}`,
		encode(http.StatusText(status)), encode(detail), encode(typeInternalError), status))
}

// coded is the older form of an error, with a number.
func coded(status, code int, message string) answer {
	return jsonAnswer(status, map[string]any{"errors": []map[string]any{{"code": code, "message": message}}})
}

// notModelled says so of an endpoint that is X's, or nobody's.
func notModelled(r *http.Request) answer {
	return jsonAnswer(http.StatusNotImplemented, map[string]any{
		"title": "Not Modelled", "status": http.StatusNotImplemented, "type": "about:blank",
		"detail": "The simulator does not model " + r.Method + " " + r.URL.Path + "; docs/SIMULATOR.md has what it models.",
	})
}

// mistake is one broken parameter of a request.
type mistake struct {
	parameter string
	value     string
	message   string
}

// invalid is the 400 for broken parameters.
func invalid(m mistake) answer {
	type entry struct {
		Parameters map[string][]string `json:"parameters,omitempty"`
		Message    string              `json:"message"`
	}
	e := entry{Message: m.message}
	if m.parameter != "" {
		e.Parameters = map[string][]string{m.parameter: {m.value}}
	}
	a := jsonAnswer(http.StatusBadRequest, struct {
		Errors []entry `json:"errors"`
		Title  string  `json:"title"`
		Detail string  `json:"detail"`
		Type   string  `json:"type"`
	}{[]entry{e}, "Invalid Request", "One or more parameters to your request was invalid.", typeInvalidRequest})
	a.contentType = problemType
	return a
}

// malformed refuses a request that no correct client sends, and records it.
func (s *Server) malformed(c *call, m mistake) answer {
	s.violate(c, ViolationMalformedRequest, strings.TrimSpace(c.endpoint+": "+m.parameter+" "+m.message))
	return invalid(m)
}

// oauthRefusal is the token endpoint's own form of error.
func oauthRefusal(status int, code, description string) answer {
	return jsonAnswer(status, struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{code, description})
}

func invalidToken() answer {
	return oauthRefusal(http.StatusBadRequest, "invalid_request", "Value passed for the token was invalid.")
}

func missingBasic() answer {
	return oauthRefusal(http.StatusUnauthorized, "unauthorized_client", "Missing valid authorization header")
}

// problemAnswer is the body seen in the wild for a status. Variants name the
// other bodies of the same status; see [Fault.Variant]. An unknown pair gives
// status 0.
func problemAnswer(status int, variant string) answer {
	switch fmt.Sprintf("%d/%s", status, variant) {
	case "400/":
		return invalid(mistake{message: "The request was invalid."})
	case "400/media-ids":
		return invalid(mistake{"media.media_ids", "", messageMediaIDs})
	case "401/":
		return rawProblem(status, `{"title":"Unauthorized","type":"about:blank","status":401,"detail":"Unauthorized"}`)
	case "402/":
		return rawProblem(status, `{"detail":"credits depleted","status":402,"title":"Payment Required","type":"https://api.x.com/2/problems/credits-depleted"}`)
	case "402/legacy":
		a := rawProblem(status, `{"title":"CreditsDepleted","detail":"Your enrolled account [1] does not have any credits to fulfill this request.","type":"https://api.twitter.com/2/problems/credits"}`)
		a.contentType = jsonType
		return a
	case "403/":
		return forbidden(detailNotPermitted)
	case "403/user-suspended":
		return rawProblem(status, `{"title":"Forbidden","detail":"The user used for authentication is suspended","type":"https://api.twitter.com/2/problems/user-suspended","status":403}`)
	case "403/suspended":
		return coded(status, 64, "Your account is suspended and is not permitted to access this feature.")
	case "403/locked":
		return coded(status, 326, "To protect our users from spam and other malicious activity, this account is temporarily locked. Please log in to https://x.com to unlock your account.")
	case "403/automated":
		return coded(status, 226, "This request looks like it might be automated. To protect our users from spam and other malicious activity, we can't complete this action right now. Please try again later.")
	case "403/app-read-only":
		return coded(status, 261, "Application cannot perform write actions. Contact X Platform Operations for assistance.")
	case "403/app-suspended":
		return coded(status, 416, "Invalid / suspended application")
	case "403/client-forbidden":
		return rawProblem(status, `{"client_id":"1","detail":"This endpoint is for official clients alone.","title":"Client Forbidden","reason":"official-client-forbidden","type":"https://api.twitter.com/2/problems/client-forbidden"}`)
	case "403/cashtag":
		return forbidden(detailCashtags)
	case "403/client-not-enrolled":
		return rawProblem(status, `{"client_id":"1","detail":"When authenticating requests to the Twitter API v2 endpoints, you must use keys and tokens from a Twitter developer App that is attached to a Project.","registration_url":"https://developer.twitter.com/en/docs/projects/overview","title":"Client Forbidden","required_enrollment":"Appropriate Level of API Access","reason":"client-not-enrolled","type":"https://api.twitter.com/2/problems/client-forbidden"}`)
	case "403/duplicate":
		return forbidden(detailDuplicate)
	case "403/parent-gone":
		return forbidden(detailParentGone)
	case "403/quote-rule":
		return forbidden(detailQuoteRule)
	case "403/reply-rule":
		return forbidden(detailReplyRule)
	case "403/spend-cap":
		return rawProblem(status, `{"title":"SpendCapReached","detail":"Your enrolled account [1] has reached its billing cycle spend cap. API requests will be blocked until the next cycle begins on 2099-01-01.","reset_date":"2099-01-01","type":"https://api.twitter.com/2/problems/credits"}`)
	case "404/", "413/":
		return answer{status: status}
	case "429/":
		return rawProblem(status, `{"title":"Too Many Requests","detail":"Too Many Requests","type":"about:blank","status":429}`)
	case "429/legacy":
		a := rawProblem(status, `{"errors":[{"code":88,"message":"Rate limit exceeded"}]}`)
		a.contentType = jsonType
		return a
	case "429/problem":
		return rawProblem(status, `{"title":"Too Many Requests","detail":"Rate limit exceeded","type":"https://api.x.com/2/problems/rate-limit-exceeded"}`)
	case "429/usage-capped":
		return rawProblem(status, `{"title":"UsageCapExceeded","detail":"Usage cap exceeded: Monthly product cap","type":"https://api.twitter.com/2/problems/usage-capped","period":"Monthly","scope":"Product"}`)
	case "500/":
		return internalError(status, "Something is broken. This is usually a temporary error, for example in a high load situation or if an endpoint is temporarily having issues.")
	case "502/", "504/":
		return answer{status: status, contentType: htmlType, body: []byte("<html><body><h1>" + http.StatusText(status) + "</h1></body></html>")}
	case "503/":
		return internalError(status, http.StatusText(status))
	case "503/empty":
		return answer{status: status}
	}
	return answer{}
}

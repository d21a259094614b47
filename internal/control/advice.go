package control

import (
	"strings"

	"github.com/jetpost/jetpost"
)

// AdviceFor is Advice about an account and the request of that id, either of
// which may be empty.
func AdviceFor(code jetpost.Code, account, id string) string {
	advice := Advice(code)
	if code == jetpost.CodeAccountUnknown && id == "" { // nothing was sent that could be sent again
		advice, _, _ = strings.Cut(advice, "; then:")
	}
	for placeholder, name := range map[string]string{" ACCOUNT": account, " ID": id} {
		if name != "" {
			advice = strings.ReplaceAll(advice, placeholder, " "+name)
		}
	}
	return advice
}

// Advice is what a person can do about a reason, or "" where waiting is all.
func Advice(code jetpost.Code) string {
	switch code {
	case jetpost.CodeInvalidRequest:
		return "correct the message and send it again"
	case jetpost.CodeAccountUnknown:
		return "see the names with jetpost accounts list, or add it with jetpost accounts connect ACCOUNT; then: jetpost replay ID"
	case jetpost.CodeIdentityConflict:
		return "send it with an id of its own"
	case jetpost.CodeSetAside:
		return "read the error; once its cause is gone: jetpost replay ID"
	case jetpost.CodeMediaUnavailable:
		return "make the file readable again, or jetpost requests cancel"
	case jetpost.CodeTokenRefreshFailed:
		return "wait, or try now with jetpost refresh ACCOUNT --force"
	case jetpost.CodeNeedsNewerWorker:
		return "finish the upgrade of the workers"
	case jetpost.CodeReconciling:
		return "wait, or say what you see on X with jetpost requests resolve ID"
	case jetpost.CodeAccountReauthRequired:
		return "connect it again with: jetpost accounts connect ACCOUNT"
	case jetpost.CodeAccountSuspended:
		return "appeal on X, as the account; once it is lifted go on at once with: jetpost resume ACCOUNT"
	case jetpost.CodeAccountLocked:
		return "log in to x.com as the account and unlock it; then: jetpost resume ACCOUNT"
	case jetpost.CodeAccountUnauthorized:
		return "look at the account on X; if all is well there, connect it again with: jetpost accounts connect ACCOUNT, then: jetpost resume ACCOUNT"
	case jetpost.CodeAccountScopeMissing:
		return "connect it again, with every permission that is asked for: jetpost accounts connect ACCOUNT"
	case jetpost.CodeAccountRefused:
		return "read X's words and look at the account on X; then: jetpost resume ACCOUNT, and jetpost replay what failed"
	case jetpost.CodeKeyUnavailable:
		return "see which key is missing with jetpost keys status, add it to HUB_ENCRYPTION_KEY, behind the first, and restart the workers"
	case jetpost.CodePoison:
		return "read the workers' logs, remove the cause, then jetpost replay ID or jetpost requests cancel ID"
	case jetpost.CodeRefusedByX:
		return "change the post and send it under another id, or remove the cause and jetpost replay ID"
	case jetpost.CodeDuplicate:
		return "change the text and send it under another id, or jetpost replay ID later"
	case jetpost.CodeMediaInvalid:
		return "send a new request with another file, or replace the one at its URL and jetpost replay ID"
	case jetpost.CodeMediaChanged:
		return "put the first file back and jetpost replay ID, or send a new request with the new one"
	case jetpost.CodeTextTooLong:
		return "shorten it, or cut it with jetpost publish --split, and send it under another id; or subscribe the account and jetpost replay ID"
	case jetpost.CodeSameText:
		return "change the text and send it under another id; jetpost replay ID sends it all the same"
	case jetpost.CodeBodyLost:
		return "send it again under its id"
	case jetpost.CodeExpired:
		return "send a new request; jetpost replay ID sends it late, unless its expires_at has passed"
	case jetpost.CodeOutcomeUnknown:
		return "look at the account on X, then say with jetpost requests resolve ID whether the post is there"
	case jetpost.CodeUsageCapped:
		return "raise the cap in X's developer console, then jetpost resume --app"
	case jetpost.CodeCreditsDepleted:
		return "buy credits in X's developer console, then jetpost resume --app"
	case jetpost.CodeSpendCapReached:
		return "raise the limit in X's developer console, then jetpost resume --app"
	case jetpost.CodeClientNotEnrolled:
		return "enrol the app in X's developer console, then jetpost resume --app"
	case jetpost.CodeAppReadOnly:
		return "give the app the permission to read and write in X's developer console, connect its accounts again, then jetpost resume --app"
	case jetpost.CodeAppSuspended:
		return "see in X's developer console why the app is suspended, and appeal; then jetpost resume --app"
	case jetpost.CodeClientForbidden:
		return "see in X's developer console what the app may use; then jetpost resume --app"
	case jetpost.CodeAppRefused:
		return "read X's words and see X's developer console; then jetpost resume --app, and jetpost replay what failed"
	case jetpost.CodeAppMisconfigured:
		return "correct X_CLIENT_ID and X_CLIENT_SECRET, check the app's type in X's developer console, restart the workers, then jetpost resume --app"
	case jetpost.CodeAccountPaused:
		return "go on before its end with: jetpost resume ACCOUNT"
	case jetpost.CodePausedByHand:
		return "go on before its end with: jetpost resume --app"
	case jetpost.CodePostingLimit:
		return "wait, restart the workers with another limit, or change that of one account with: jetpost accounts limit"
	case jetpost.CodeAppPaused:
		return "see what stopped it with jetpost status"
	default: // rate limits and outages of X end by themselves
		return ""
	}
}

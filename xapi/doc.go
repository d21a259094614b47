// Package xapi turns one call into one HTTP request to X and one typed result.
//
// Every method sends its request at most once, but for the segments of an upload:
// each is the same one however often X gets it. What comes back is the value, or
// an error whose type says what is known about the world:
//
//	NotSentError       no byte of the request left this process
//	AmbiguousError     X may have acted: look before sending again
//	UnavailableError   nothing was changed; the same request may succeed later
//	RateLimitError     a rate window is closed until a known time
//	AppError       X refuses the whole app until somebody acts
//	AccountError       X refuses the whole account, for as long as it says
//	UnauthorizedError  the access token was not accepted
//	RefusedError       this request will never be accepted as it is
//	GrantRefusedError  a refresh token was not accepted
//	CodeRefusedError   the code of a consent was not accepted
//	AppAuthError       the app's own credentials were not accepted
//
// Else the package never retries, waits, follows a redirect, stores a token or logs.
// A Client remembers nothing but the rate windows that X's answers reported.
package xapi

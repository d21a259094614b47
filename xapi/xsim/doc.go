// Package xsim is a stand-in for X: the part of its API v2 that a publisher uses,
// served from memory. It exists for tests, demos and benchmarks, and must be at least
// as strict as X. It never talks to the network by itself, stores nothing on disk
// unless asked to ([Server.Keep]), and shares no code with any client, so that one
// wrong belief about X cannot hide in both.
//
// The zero value of [Server] is ready. Serve it as an [http.Handler] behind a
// listener, or hand it to an [http.Client] as its Transport: RoundTrip needs no
// socket, so that a test inside a testing/synctest bubble keeps its fake clock.
//
// # What is modelled
//
//   - POST /2/oauth2/token (authorization_code with PKCE S256, refresh_token) and
//     POST /2/oauth2/revoke. Refresh tokens are single use: a used one is refused
//     and takes its whole family, access tokens included, with it.
//   - GET /i/oauth2/authorize: a page with a button for each account, for a person
//     with a browser, or an answer at once ([Consent]). A code can be exchanged
//     once, within 30 seconds, by the client that asked for it, with its verifier
//     and the same redirect_uri; the exchange ends earlier pairs of the user.
//   - POST /2/tweets, DELETE and GET /2/tweets/{id}, GET /2/tweets: schema with
//     additionalProperties false, weighted length, links of 23 characters,
//     duplicate filter, reply and quote rules, cashtag rule, media ownership and
//     expiry. Texts are read back as X gives them: NFC, links as t.co, &, < and >
//     escaped, a link appended for media, long texts cut with a note beside them.
//   - GET /2/users/{id}/tweets with paging, time and id bounds, and an indexing
//     lag; GET /2/users/me, /2/users/{id} and /2/users/by/username/{username}.
//     Parameters and their values are those of openapi.json, X's own lists.
//   - POST /2/media/upload in one shot (images) and POST /2/media/metadata.
//   - Chunked uploads of images, GIFs and video: initialize, append, finalize and
//     GET /2/media/upload for STATUS. Segments come in any order; one that comes
//     twice must be equal. Finalize refuses gaps, another size than was announced
//     and bytes that are not of the announced type, and it works once: a client that
//     lost its answer asks STATUS. GIFs and video are then processed, and until
//     they are ready a post with them is refused.
//   - A post takes four images, one GIF or one video. Ids that are unknown, another
//     user's, expired, failed or not ready are all refused in the same words.
//   - Fixed rate windows per endpoint that open at the first call and end on a
//     whole second, since the reset header can say no more. A refused call
//     consumes quota like any other. Scopes of the token are enforced.
//   - Old and new vocabulary: tweet.fields is answered with referenced_tweets and
//     note_tweet, post.fields with note_post; referenced_posts is an expansion.
//   - Accounts that are suspended, locked or protected ([AccountChange]).
//
// Any other path is answered 501, in words.
//
// # What is not modelled
//
// What is in a video (codec, length, frames), subtitles and 3D models, media shared
// with other owners, larger files for subscribers, polls' votes, editing, communities,
// quoting by enterprise clients, application-only tokens, prices and credit balances
// (their refusals are faults), the complete list of top-level domains, and entities
// other than links. Emoji sequences are recognised by shape rather than by X's
// list. Entity indices are code points of the returned text.
//
// # Faults
//
// [Fault] describes one: latency, a status, a cut connection, an unreadable
// answer, an answer without id, a lost answer, an outage, a refused text, a medium
// whose processing fails, an index or replicas that lag, a post that vanishes, a slow
// upload; or any answer that a test writes itself. A medium that X calls ready and yet
// refuses in a post is the status 400 with variant media-ids. A client that gives up does not stop an effect that is under
// way: X would not stop either.
//
// # Call log
//
// Every call is recorded ([Call]). Every presentation of a refresh token or code is
// recorded with its token and whether its client knows the outcome ([Exchange]). So is
// everything that a correct client never does ([Violation]); see the Violation
// constants for details. A program that ends without violations has posted nothing
// twice, has replayed no refresh token and has called X in no exhausted window. What X
// is believed to accept beyond its specification is a [Leniency]; [Server.Strict]
// refuses it.
//
// # Control API
//
// The same as the Go methods, for programs in other processes. Bodies are
// decoded strictly: unknown fields are a 400 with {"error": "..."}. A user is
// named by id or handle.
//
//	GET    /_sim/                  a page for people
//	POST   /_sim/accounts          NewAccount -> 201 Grant
//	GET    /_sim/accounts          [Account]
//	PUT    /_sim/accounts?user=    AccountChange -> Account
//	GET    /_sim/posts?user=       [Post] in order of creation, deleted ones left out
//	GET    /_sim/media?user=       [Media]
//	DELETE /_sim/media?user=       the user's media and uploads expire at once
//	GET    /_sim/calls             [Call], oldest first, the last 10,000
//	GET    /_sim/exchanges?user=   [Exchange], oldest first, the last 1,000 of each account
//	GET    /_sim/counts            {"POST /2/tweets": {"201": 5, "0": 1}}; 0 is a cut or lost answer
//	GET    /_sim/violations        [Violation]
//	GET    /_sim/leniencies        [Leniency]
//	GET    /_sim/faults            [Fault] with what each has seen and done
//	PUT    /_sim/faults            [Fault]; replaces all
//	GET    /_sim/limits            [Limit] in force
//	PUT    /_sim/limits            [Limit]; laid over the defaults, all windows start anew
//	GET    /_sim/windows           [Window] that are open
//	GET    /_sim/tokens?user=      Token: the pair in force
//	DELETE /_sim/tokens?user=      the user withdraws consent
//	GET    /_sim/consent           Consent in force
//	PUT    /_sim/consent           Consent: what the next visitor of the authorize page does
//	GET    /_sim/scenario          Scenario that was begun last, with what has become of its steps
//	PUT    /_sim/scenario          Scenario; begins it
//	POST   /_sim/reset             forgets everything, faults and limits included
//	GET    /_sim/healthz           {"status":"ok"}
package xsim

package rules

import "time"

// How long it is kept what is stored for a time. The methods that add something delete what
// is older.
const (
	// RefusalRetention is how long a refused message is stored, with its whole body.
	// NATS bounds the size of each message; this bounds how many there are.
	RefusalRetention = 30 * 24 * time.Hour
	// LinkRetention is how long an expired link is still recognised.
	LinkRetention = 7 * 24 * time.Hour
	// OperationRetention is how long it is known that an operation was done.
	OperationRetention = 7 * 24 * time.Hour
	// APITokenRetention is how long an API token is known after its end, revoked or not.
	// Its name is free after that.
	APITokenRetention = 30 * 24 * time.Hour
	// RoundRetention is how long a refresh round and its batches are stored. Requests
	// have no such limit: a finished request tells a repeat of its identity from a new
	// request, and its posts keep a post on X from being counted as two of ours.
	RoundRetention = 30 * 24 * time.Hour
	// AuditRetention is how long it is known who changed what.
	AuditRetention = 365 * 24 * time.Hour
)

// How many rows one call deletes of those that are too old or have ended. Each call adds one
// at most, so any backlog shrinks.
const (
	MaxForgottenRefusals   = 100
	MaxForgottenLinks      = 100
	MaxForgottenOperations = 100
	MaxForgottenSessions   = 100
	MaxForgottenAttempts   = 100
	MaxForgottenAudits     = 100
)

// SessionSeenEvery is how often a use of a session is noted: a row is not written for each
// page.
const SessionSeenEvery = time.Minute

// Package consumers is what is read from NATS and what comes of it.
//
// [Runner] takes deliveries and is the one place that acknowledges them. A
// handler steers it by the error that it returns: [IntakeHandler] turns a
// job into a request in the ledger, [PublishHandler] runs an account's lane,
// [RefreshHandler] keeps tokens alive, and [Sweeper] wakes again whatever was not
// heard. Whether X may be called is asked of package admission.
//
// A delivery is only a hint: what must be done stands in the ledger, and a
// message that comes twice, late or never changes nothing but the moment at
// which it is looked for. The package never decides by a message's content
// what was done already, and it never retries a call to X whose outcome it
// does not know.
package consumers

// Package consumers reads messages from NATS and acts on them.
//
// [Runner] pulls deliveries, and it alone acknowledges them, depending on the error that
// the handler returns. [IntakeHandler] turns a job into a request in the ledger,
// [PublishHandler] runs an account's lane, [RefreshHandler] keeps tokens alive, and
// [Sweeper] wakes lanes whose wake-up was lost. Package admission decides whether X may be
// called.
//
// A delivery is only a hint. The ledger says what has to be done, so a message that comes
// twice, late or never only changes when the ledger is read. The package never decides by
// the content of a message what is already done. It never retries a call to X whose outcome
// is unknown.
package consumers

// Package consumers is the worker: it reads messages from NATS and acts on them.
//
// [NewWorker] puts a worker together and [Worker.Run] runs it, also within another program.
// It turns jobs into requests in the ledger, runs the accounts' lanes, which publish them,
// keeps tokens alive, and wakes lanes whose wake-up was lost. Package admission decides
// whether X may be called. The rest of this package is for programs that work on the same
// ledger beside workers: [OutboxRelay] publishes their changes, [AppPauseControl] pauses the
// app, [Prune] removes what finished long ago.
//
// A delivery is only a hint. The ledger says what has to be done, so a message that comes
// twice, late or never only changes when the ledger is read. The package never decides by
// the content of a message what is already done. It never retries a call to X whose outcome
// is unknown.
package consumers

// Package publishers holds every write to NATS: jobs and media from producers
// ([Publisher]), the streams, consumers and buckets of an installation ([Setup]),
// wake-ups of accounts ([Wakeups]), events, dead letters and rejections
// ([DeadLetters]), and the app pauses that all workers obey ([AppPauses]).
//
// It never consumes work: it reads no consumer that must ack. It never decides what a
// message means, has no state between calls, and copies no header of a message, since a
// header named Nats-* could purge a stream.
//
// Every call to NATS is bounded in time, and its errors say what an operator
// can do: see [Hint].
package publishers

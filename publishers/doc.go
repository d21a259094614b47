// Package publishers holds every write to NATS: jobs and media from producers
// ([Publisher]), the streams, consumers and buckets of an installation
// ([Setup]), wake-ups and wake-ups of accounts ([Wakeups]), events and failed
// records ([DeadLetters]), and the stops that all workers heed ([AppPauses]).
//
// It never consumes work: no consumer that must ack is read here. It never
// decides what a message means, keeps nothing between calls, and copies no
// header of a message that it was given, since a header named Nats-* could
// purge a stream.
//
// Every call to NATS is bounded in time, and its errors say what an operator
// can do: see [Hint].
package publishers

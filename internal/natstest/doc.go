// Package natstest starts real NATS servers with JetStream for tests, each in
// the test's own process and directory. It never fakes an answer of the server
// and never reaches one that it did not start.
package natstest

// Package jetpost is the contract on the wire: what a program publishes onto
// NATS to have posts appear on X, and what it reads back as events.
//
// A producer needs nothing from here but JSON: any NATS client in any language can
// publish a [Request] onto "publish.request.<account>". Go programs use these types and
// [Request.Validate], which reports every mistake before anything is published. Workers
// read with [Decode], by the same rules.
//
// The package holds types, states, reason codes, names and validation. It imports no
// other package of this module, opens no connection and has no state.
package jetpost

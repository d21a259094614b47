// Package pgtest gives tests a real PostgreSQL.
//
// The databases are on the server that TEST_DATABASE_URL names or, without it, on a
// private one that is started from the machine's own binaries, once for each test
// process. It never outlives the process, however that ends.
//
// It never skips a test: a machine without PostgreSQL fails it with a hint.
// It knows nothing of any schema, and no program imports it.
package pgtest

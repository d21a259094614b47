// Package xspectest checks requests and answers against X's own schemas. Only tests
// import it. It never answers anything itself, and knows nothing of client or
// simulator.
package xspectest

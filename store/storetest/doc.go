// Package storetest is the suite that every database of package store must
// pass. It says in running code what the comments of the interfaces say in
// words.
//
// It knows nothing of how a database keeps its rows, but for the names of the
// columns that hold sealed values. Leases it lets run out in real time, since
// a database may judge them by its own clock; all other times it passes.
package storetest

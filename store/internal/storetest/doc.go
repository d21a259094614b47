// Package storetest is the suite that every database of package store must pass. It
// states in running code what the comments of the interfaces state in words.
//
// It knows nothing of how a database stores its rows, except the names of the columns
// that hold sealed values. It lets leases run out in real time, since a database may
// judge them by its own clock. All other times it passes to the methods.
package storetest

// Package chaos runs the program on real servers while everything goes wrong at random, and
// says whether it kept its promises. X's call log and the ledger are compared from outside;
// no guard of the program is asked whether it held. Its tests are short runs, the program
// behind scripts/chaos does long ones.
package chaos

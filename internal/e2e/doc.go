// Package e2e has the tests of the whole system: they run the program's processes on real
// servers, against a simulated X. What starts them is in package harness.
package e2e

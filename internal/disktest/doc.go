// Package disktest gives tests a disk of their own, which they can fill.
package disktest

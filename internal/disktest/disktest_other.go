//go:build !linux

package disktest

import "testing"

// Disk is a small file system in memory, which only Linux has.
type Disk struct{ Dir string }

// New skips the test.
func New(t *testing.T, _ int) *Disk {
	t.Helper()
	t.Skip("a disk to fill needs Linux")
	return nil
}

// Fill leaves that many bytes free.
func (*Disk) Fill(int64) {}

// Free gives all of it back.
func (*Disk) Free() {}

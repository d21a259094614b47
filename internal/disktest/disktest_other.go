//go:build !linux

package disktest

import "github.com/jetpost/jetpost/internal/testkit"

// Disk is a small file system in memory, which only Linux has.
type Disk struct{ Dir string }

// New ends the test.
func New(t testkit.T, _ int) *Disk {
	t.Helper()
	t.Fatal("a disk to fill needs Linux")
	return nil
}

// Fill leaves that many bytes free.
func (*Disk) Fill(int64) {}

// Free gives all of it back.
func (*Disk) Free() {}

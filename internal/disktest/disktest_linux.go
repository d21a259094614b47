package disktest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/jetpost/jetpost/internal/testkit"
)

// Disk is a small file system in memory.
type Disk struct {
	t   testkit.T
	Dir string
}

// New mounts a disk of that many bytes until the test ends. Only root may mount. For
// other users it runs the test once more, as the root of a user namespace, and returns
// nil: the test is over then.
func New(t testkit.T, size int) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		again(t)
		return nil
	}
	d := &Disk{t: t, Dir: t.TempDir()}
	if err := syscall.Mount("tmpfs", d.Dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount a disk to fill: %v; run this test as root, or where user namespaces are allowed", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(d.Dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

func again(t testkit.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	t.Logf("run as the root of a user namespace:\n%s", out)
	if err != nil {
		t.Errorf("a disk to fill needs root, or a user namespace: %v", err)
	}
}

// Fill leaves that many bytes free.
func (d *Disk) Fill(left int64) {
	d.t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(d.Dir, &s); err != nil {
		d.t.Fatal(err)
	}
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	block := make([]byte, s.Bsize)
	for n := int64(s.Bavail)*s.Bsize - left; n > 0 && err == nil; n -= s.Bsize {
		_, err = f.Write(block)
	}
	if errors.Is(err, syscall.ENOSPC) && left == 0 { // others write too
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil {
		d.t.Fatal(err)
	}
}

// Free gives all of it back.
func (d *Disk) Free() {
	d.t.Helper()
	if err := os.Remove(d.filler()); err != nil {
		d.t.Fatal(err)
	}
}

func (d *Disk) filler() string { return filepath.Join(d.Dir, "filler") }

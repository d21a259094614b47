package xsim

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

const (
	// journalFormat is the version of the journal's lines.
	journalFormat = 1

	// journalSlack is how many bytes a journal may grow beyond twice what it began with,
	// until it is written anew.
	journalSlack = 32 << 20
)

// journal is a file of JSON, one line for each step in which something changed. A
// rewrite begins it with the whole state.
type journal struct {
	path  string
	file  *os.File
	size  int64 // bytes
	begun int64 // bytes of what it began with
	err   error // why nothing more is stored

	starts int // of a server on it, this one included
}

// JournalError says that a journal cannot be read.
type JournalError struct {
	Path string
	Line int // 0 where the file as a whole is at fault
	Err  error
}

func (e *JournalError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("read journal %s: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("read journal %s: line %d: %v", e.Path, e.Line, e.Err)
}

func (e *JournalError) Unwrap() error { return e.Err }

// Keep has the server outlive its process: it goes on from what the file holds, and from
// then on writes every change there before it answers the call that made it. The file is
// made if it is missing. What was answered outlives a process that is killed; a machine
// that fails may lose the last seconds. It comes before everything but the fields, in one
// process alone, and Close at the end.
//
// The fields are not stored, nor is how far a scenario has come.
func (s *Server) Keep(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w != nil {
		return errors.New("keep a simulated X: it has been used already")
	}
	s.lastID = firstID
	s.journal = &journal{path: path}
	s.w = s.newWorld()
	starts, err := s.replay()
	if err != nil {
		s.journal, s.w = nil, nil
		return err
	}
	// Token values of this start must be none of those before.
	s.rand = rand.New(rand.NewPCG(s.Seed, 0x78+uint64(starts)<<8))
	s.journal.starts = starts + 1
	s.journal.rewrite(s.snapshot())
	if err := s.journal.err; err != nil {
		s.journal, s.w = nil, nil
		return err
	}
	return nil
}

// Close ends what Keep began, with everything on the disk. Nothing is stored from then
// on.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal == nil {
		return nil
	}
	file := s.journal.file
	s.journal, s.w.unkept = nil, nil
	return errors.Join(file.Sync(), file.Close())
}

// journalError says why what was just answered may be forgotten.
func (s *Server) journalError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal == nil {
		return nil
	}
	return s.journal.err
}

// replay applies the journal's lines and returns how many starts it has seen. A last
// line without an end was written by a process that died; no client got an answer for
// it.
func (s *Server) replay() (starts int, err error) {
	path := s.journal.path
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, &JournalError{Path: path, Err: err}
	}
	defer func() { _ = f.Close() }() // only read from
	lines := bufio.NewReader(f)
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if number == 1 {
				return 0, &JournalError{Path: path, Line: 1, Err: errors.New("it is no journal of a simulated X")}
			}
			return starts, nil
		}
		if err != nil {
			return 0, &JournalError{Path: path, Err: err}
		}
		var c changes
		if err := strictly(line, &c); err != nil {
			return 0, &JournalError{Path: path, Line: number, Err: err}
		}
		if number == 1 && c.Format != journalFormat {
			return 0, &JournalError{Path: path, Line: 1, Err: fmt.Errorf("format is %d, want %d", c.Format, journalFormat)}
		}
		if err := s.redo(&c); err != nil {
			return 0, &JournalError{Path: path, Line: number, Err: err}
		}
		starts = max(starts, c.Starts)
	}
}

// rewrite replaces the journal by that one line.
func (j *journal) rewrite(all *changes) {
	if j.err != nil {
		return
	}
	f, err := os.CreateTemp(filepath.Dir(j.path), "."+filepath.Base(j.path)+"-*") // made with 0600
	if err != nil {
		j.err = fmt.Errorf("write journal %s: %w", j.path, err)
		return
	}
	line := append(encode(all), '\n')
	_, err = f.Write(line)
	if err = errors.Join(err, f.Sync()); err == nil {
		err = os.Rename(f.Name(), j.path)
	}
	if err != nil {
		j.err = fmt.Errorf("write journal %s: %w", j.path, errors.Join(err, f.Close(), os.Remove(f.Name())))
		return
	}
	if j.file != nil {
		_ = j.file.Close() // it has another's name now
	}
	j.file, j.size, j.begun = f, int64(len(line)), int64(len(line))
}

// keepChanges writes what was touched as one line. The caller holds the lock.
func (s *Server) keepChanges() {
	touched := *s.w.unkept
	if len(touched) == 0 {
		return
	}
	*s.w.unkept = nil
	if s.journal.err != nil { // with what was not stored then, once there is room again
		s.journal.err = nil
		s.journal.rewrite(s.snapshot())
		return
	}
	var c changes
	for _, v := range touched {
		c.add(v)
	}
	line := append(encode(&c), '\n')
	if _, err := s.journal.file.Write(line); err != nil {
		s.journal.err = fmt.Errorf("write journal %s: %w", s.journal.path, err)
		if s.Logger != nil {
			s.Logger.Error("xsim.journal_failed", "error", s.journal.err)
		}
		return
	}
	s.journal.size += int64(len(line))
	if s.journal.size > 2*s.journal.begun+cmp.Or(s.journalSlack, journalSlack) {
		s.journal.rewrite(s.snapshot())
	}
}

// touch notes what has changed, to be written once the step is done: what it is by then.
func (w *world) touch(things ...any) {
	if w.unkept == nil {
		return
	}
	for _, v := range things {
		if !slices.Contains(*w.unkept, v) {
			*w.unkept = append(*w.unkept, v)
		}
	}
}

// touch is for what the call's own world holds, which a reset may have ended.
func (c *call) touch(v any) { c.world.touch(v) }

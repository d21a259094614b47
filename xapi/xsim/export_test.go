package xsim

// BreakJournal makes the next write of a line fail.
func (s *Server) BreakJournal() { _ = s.journal.file.Close() }

// Bound lowers the bytes of pictures that are stored, and those that a journal may grow by
// until it is written anew.
func (s *Server) Bound(pictures int, slack int64) { s.mostPictures, s.journalSlack = pictures, slack }

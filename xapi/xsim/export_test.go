package xsim

// BreakJournal makes the next write of a line fail.
func (s *Server) BreakJournal() { _ = s.journal.file.Close() }

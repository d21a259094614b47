package xsim

// BreakJournal has the next line fail to be written.
func (s *Server) BreakJournal() { _ = s.journal.file.Close() }

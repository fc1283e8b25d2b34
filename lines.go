package main

import "bytes"

// What a process writes is cut into lines and kept within bounds here, so that
// no output makes the server's memory grow.

const (
	maxLine   = 16 << 20 // a longer line is skipped, bytes
	maxStderr = 8 << 10  // how much of the end of stderr is kept, bytes
)

// splitter calls line for each line that is written to it and isn't empty, with
// nil for one longer than maxLine. line may keep what it gets.
type splitter struct {
	line  func([]byte)
	begun []byte
	size  int // of the line that has begun, bytes
}

func (s *splitter) Write(p []byte) (int, error) {
	for part := range bytes.Lines(p) {
		text, isWhole := bytes.CutSuffix(part, []byte("\n"))
		s.add(text)

		if isWhole {
			s.end()
		}
	}
	return len(p), nil
}

func (s *splitter) add(text []byte) {
	s.size += len(text)
	if s.size > maxLine {
		s.begun = nil
		return
	}
	s.begun = append(s.begun, text...)
}

func (s *splitter) end() {
	if s.size > 0 {
		s.line(s.begun)
	}
	s.begun = nil
	s.size = 0
}

// tail keeps the last maxStderr bytes of what is written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	all := append(*t, p...)
	excess := max(0, len(all)-maxStderr)

	*t = append(all[:0], all[excess:]...)
	return len(p), nil
}

package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// The log never holds anybody up: lines wait for a reader who is slow, and are
// dropped and counted when too many wait, refusals first, as anybody can cause
// those. The next line tells the gap.

const (
	maxLines    = 1000 // that wait
	maxRefusals = 500  // refusals come only while fewer wait
)

// logSink writes lines to one writer, in order. It is safe for concurrent use.
type logSink struct {
	out  io.Writer
	wake chan struct{} // holds one when there may be a line

	mu      sync.Mutex
	waiting [][]byte
	writing bool // a line is on its way
	dropped int  // since the last line that was taken
}

// newLog returns a log for what matters and one for refusals, both for people and
// machines, and the sink that they share. Lines are written in the background.
func newLog(out io.Writer) (log, refusals *slog.Logger, sink *logSink) {
	sink = &logSink{out: out, wake: make(chan struct{}, 1)}
	go sink.pump()

	log = slog.New(slog.NewTextHandler(limitedTo{sink, maxLines}, nil))
	refusals = slog.New(slog.NewTextHandler(limitedTo{sink, maxRefusals}, nil))
	return log, refusals, sink
}

// limitedTo takes a line only while fewer than most wait.
type limitedTo struct {
	sink *logSink
	most int
}

func (l limitedTo) Write(line []byte) (int, error) {
	l.sink.add(line, l.most)
	return len(line), nil
}

func (s *logSink) add(line []byte, most int) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if len(s.waiting) >= most {
		s.dropped++
		return
	}
	line = bytes.TrimSuffix(line, []byte("\n"))
	line = bytes.Clone(line) // slog uses its buffer again
	if s.dropped > 0 {
		line = fmt.Appendf(line, " lines_dropped=%d", s.dropped)
		s.dropped = 0
	}
	s.waiting = append(s.waiting, append(line, '\n'))

	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *logSink) pump() {
	for range s.wake {
		for {
			line := s.next()
			if line == nil {
				break
			}
			s.out.Write(line) // may take for ever; a writer that fails gets the next one
		}
	}
}

func (s *logSink) next() (line []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.writing = len(s.waiting) > 0
	if !s.writing {
		return nil
	}
	line = s.waiting[0]
	s.waiting = s.waiting[1:]
	return line
}

// flush waits until all lines are written, for a second at most.
func (s *logSink) flush() {
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		if s.isEmpty() {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *logSink) isEmpty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting) == 0 && !s.writing
}

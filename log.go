package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	maxLogLines    = 1000 // that wait to be written
	maxRejectLines = 500  // rejections are logged only while fewer lines wait
)

// asyncWriter writes lines in order, in the background, so that a log that nobody reads
// holds up nothing: lines that are too many are dropped and counted. It is safe for
// concurrent use.
type asyncWriter struct {
	lines   chan []byte
	pending atomic.Int64 // lines that are not written yet
	dropped atomic.Int64 // lines since the last one that was accepted
}

// newLog returns a log for what matters, one for rejections, which anybody can cause, and
// the writer that both share.
func newLog(out io.Writer) (log, rejectLog *slog.Logger, w *asyncWriter) {
	w = &asyncWriter{lines: make(chan []byte, maxLogLines)}
	go func() {
		for line := range w.lines {
			out.Write(line) // may take for ever; a writer that fails gets the next line
			w.pending.Add(-1)
		}
	}()

	log = slog.New(slog.NewTextHandler(limitWriter{w, maxLogLines}, nil))
	rejectLog = slog.New(slog.NewTextHandler(limitWriter{w, maxRejectLines}, nil))
	return log, rejectLog, w
}

// limitWriter accepts a line only while fewer than limit wait.
type limitWriter struct {
	*asyncWriter
	limit int
}

// Write never waits. The slog handlers call it once for each line.
func (w limitWriter) Write(line []byte) (int, error) {
	dropped := w.dropped.Swap(0)
	text := bytes.Clone(line) // slog uses its buffer again
	if dropped > 0 {
		text = fmt.Appendf(bytes.TrimSuffix(text, []byte("\n")), " lines_dropped=%d\n", dropped)
	}

	w.pending.Add(1)
	if len(w.lines) < w.limit {
		select {
		case w.lines <- text:
			return len(line), nil
		default:
		}
	}

	w.pending.Add(-1)
	w.dropped.Add(dropped + 1)
	return len(line), nil
}

// flush waits until all lines are written, for a second at most.
func (w *asyncWriter) flush() {
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		if w.pending.Load() == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

package main

import (
	"encoding/json"
	"os"
)

// The prompt's way into an agent, and whether it was read: the server holds both
// ends of the agent's stdin, a pipe, to see what is left in it.

// prompt is one agent's stdin. give is called once at most, and unread after it.
type prompt struct {
	in        *os.File   // the agent's end; the server never reads from it
	feed      *os.File   // the server's end
	delivered chan error // gets the outcome of the write
}

func newPrompt() (*prompt, error) {
	in, feed, err := os.Pipe()
	return &prompt{in: in, feed: feed, delivered: make(chan error, 1)}, err
}

// give writes the prompt, and the end of input behind it, as the agent gets no
// other. It doesn't wait.
func (p *prompt) give(req *request) {
	type message struct {
		Role    string `json:"role"`
		Content any    `json:"content"`
	}
	input := struct {
		Type    string  `json:"type"`
		Message message `json:"message"`
	}{"user", message{"user", contentOf(req)}}

	go func() {
		out := json.NewEncoder(p.feed)
		out.SetEscapeHTML(false) // which would make it longer than the CLI takes
		err := out.Encode(input)
		p.feed.Close()
		p.delivered <- err
	}()
}

// contentOf is what the model is sent: a text or, with pictures, blocks.
func contentOf(req *request) any {
	if len(req.images) == 0 {
		return req.prompt
	}

	var blocks []any
	for _, picture := range req.images {
		blocks = append(blocks, picture)
	}
	return append(blocks, block{Type: "text", Text: req.prompt})
}

// unread says, of an agent that is over, whether it never had the whole prompt:
// the write did not complete, or some of it is still in the pipe.
func (p *prompt) unread() bool {
	p.feed.Close() // ends a write that still waits
	return <-p.delivered != nil || p.isHeld()
}

// isHeld says whether the pipe holds some of the prompt. It never blocks.
func (p *prompt) isHeld() bool {
	pipe, err := p.in.SyscallConn()
	if err != nil {
		return false
	}

	left := 0
	pipe.Control(func(fd uintptr) { left = bytesIn(fd) })
	return left > 0
}

func (p *prompt) close() {
	p.in.Close()
	p.feed.Close()
}

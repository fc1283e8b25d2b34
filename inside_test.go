package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// What tests use of the program's inside, beside answer, apiError and the limits,
// stands here.

// serveAs runs a server that is not quite the program: "kill off" leaves killing out,
// for negative controls; with "short lives" a waiting CLI and a kept answer are
// old, and a CLI that prints nothing hangs, after a second; a "held kill" begins
// when the folder that the server is started in has a file named sweep.
func serveAs(role string) error {
	log, rejectLog, sink := newLog(os.Stderr)
	defer sink.flush()
	cfg, err := loadConfig(log)
	if err != nil {
		return err
	}
	s := newServer(cfg, log, rejectLog)
	switch role {
	case "kill off":
		s.reaper.killHook = func() bool { return false }
	case "short lives":
		s.standby.ttl = time.Second
		s.handler.operations.ttl = time.Second
		s.handler.runner.outputTimeout = time.Second
	case "held kill":
		s.reaper.killHook = func() bool {
			for _, err := os.Stat("sweep"); err != nil; _, err = os.Stat("sweep") {
				time.Sleep(5 * time.Millisecond)
			}
			return true
		}
	}
	return s.serve(context.Background())
}

// keyring is a credential proxy, and which agent may use it.
type keyring struct{ proxy *credentialProxy }

func newKeyring(key string, api *url.URL) (keyring, http.Handler) {
	cfg := &config{credentials: credentials{proxied: true, key: key, api: api}}
	k := keyring{newCredentialProxy(cfg, slog.New(slog.DiscardHandler))}
	return k, k.proxy
}

// issue lets an agent that isn't there use the key; stop is told why it must end.
func (k keyring) issue(placeholder string, stop context.CancelCauseFunc) {
	k.proxy.allow(&grant{placeholder: placeholder, stop: stop})
}

// void lets no agent use the key.
func (k keyring) void() { k.proxy.allow(&grant{})() }

// replyTo answers a client, which accepts a type, as soon as the response is
// sent to the channel.
func replyTo(w http.ResponseWriter, accept string, heartbeat time.Duration, response <-chan string) {
	r := httptest.NewRequest("POST", "/command", nil)
	r.Header.Set("Accept", accept)
	o := newOperation(context.Background(), &request{}, "")
	go func() { o.finish([]byte(<-response)) }()
	send := sendJSON
	if wantsStream(r) {
		send = sendEvents
	}
	send(w, o, heartbeat, nil)
}

// readBody is how a server with that queue reads a body.
func readBody(queue int) func(http.ResponseWriter, *http.Request) (size int, release func(), err error) {
	b := newBodyReader(&config{Queue: queue, MaxBody: maxBody})
	return func(w http.ResponseWriter, r *http.Request) (int, func(), error) {
		body, release, err := b.read(w, r)
		return len(body), release, err
	}
}

// decode is what a body asks for.
func decode(body []byte) (prompt, session string, err error) {
	c, err := decodeRequest(body)
	if err != nil {
		return "", "", err
	}
	return c.prompt, c.session, nil
}

// splitLines reads data in chunks and returns its lines.
func splitLines(data []byte, chunk int) (lines [][]byte) {
	in, out := io.Pipe()
	go func() {
		for part := range slices.Chunk(data, chunk) {
			out.Write(part)
		}
		out.Close()
	}()
	readLines(in, func(line []byte) { lines = append(lines, line) })
	return lines
}

// judgeLines is the answer that lines of the CLI's output come to.
func judgeLines(lines [][]byte) answer {
	o := &outcome{}
	for _, line := range lines {
		if m := parseLine(line); m != nil {
			o.apply(m, false)
		}
	}
	o.finish()
	return o.answer
}

// gitName is the git host without its port.
func (c *config) gitName() string {
	name, _, _ := strings.Cut(c.GitHost, ":")
	return name
}

package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// What tests use of the program's inside, beside answer, problem and the limits,
// stands here.

// serveAs runs a server that is not quite the program: "sweep off" leaves the
// sweep out, for negative controls; with "short lives" a spare and a kept answer are
// old after a second; a "held sweep" begins
// when the folder that the server is started in has a file named sweep.
func serveAs(role string) error {
	log, refusals, sink := newLog(os.Stderr)
	defer sink.flush()
	cfg, err := loadConfig(log)
	if err != nil {
		return err
	}
	s := newServer(cfg, log, refusals)
	switch role {
	case "sweep off":
		s.keeper.sweep = func() (sweepResult, error) { return sweepResult{}, nil }
	case "short lives":
		s.keeper.maxAge = time.Second
		s.handler.ledger.maxAge = time.Second
	case "held sweep":
		s.keeper.sweep = func() (sweepResult, error) {
			for _, err := os.Stat("sweep"); err != nil; _, err = os.Stat("sweep") {
				time.Sleep(5 * time.Millisecond)
			}
			return s.children.sweep()
		}
	}
	return s.serve(context.Background())
}

// keyring is a key proxy, and which agent may use it.
type keyring struct{ proxy *keyProxy }

func newKeyring(key string, api *url.URL) (keyring, http.Handler) {
	k := keyring{newKeyProxy(&config{keyProxied: true, apiKey: key, api: api}, slog.New(slog.DiscardHandler))}
	return k, k.proxy
}

// issue lets an agent that isn't there use the key; stop is told why it must end.
func (k keyring) issue(placeholder string, stop context.CancelCauseFunc) {
	k.proxy.lend(&lease{placeholder: placeholder, stop: stop})
}

// void lets no agent use the key.
func (k keyring) void() { k.proxy.lend(&lease{})() }

// replyTo answers a client, which accepts a type, as soon as the response is
// sent to the channel.
func replyTo(w http.ResponseWriter, accept string, heartbeat time.Duration, response <-chan string) {
	r := httptest.NewRequest("POST", "/command", nil)
	r.Header.Set("Accept", accept)
	events := make(chan event) // which stays open
	go func() { events <- event{name: "response", data: []byte(<-response)} }()
	reply(w, formOf(r), heartbeat, events, nil)
}

// bodyReader is how the doors of a server with that queue read a body.
func bodyReader(queue int) func(http.ResponseWriter, *http.Request) (size int, release func(), err error) {
	d := newDoors(&config{Queue: queue, MaxBody: maxBody})
	return func(w http.ResponseWriter, r *http.Request) (int, func(), error) {
		body, release, err := d.read(w, r)
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

// splitLines writes data in chunks to a splitter and returns its lines.
func splitLines(data []byte, chunk int) (lines [][]byte) {
	out := &splitter{line: func(line []byte) { lines = append(lines, line) }}
	for part := range slices.Chunk(data, chunk) {
		out.Write(part)
	}
	return lines
}

// judgeLines is the answer that lines of the CLI's output come to.
func judgeLines(lines [][]byte) answer {
	t := &transcript{}
	for _, line := range lines {
		if m := parseLine(line); m != nil {
			t.note(m, false)
		}
	}
	t.judge()
	return t.answer
}

// stampOf is what a spare's freshness is judged by, line by line.
func stampOf(workspace, home string) []string {
	agent := account{home: home, settings: home + "/.claude"}
	cfg := &config{Workspace: workspace, Warm: true, agent: agent}
	return strings.Split(startStamp(cfg), "\n")
}

// keptAnswers is a ledger of commands that no CLI runs.
type keptAnswers struct{ ledger *ledger }

func newKeptAnswers() keptAnswers {
	return keptAnswers{newLedger(newQueue(1), context.Background())}
}

func (k keptAnswers) begin(key string) *visit {
	v, err := k.ledger.visit(&request{key: key})
	if err != nil {
		panic(err)
	}
	return v
}

func (k keptAnswers) end(v *visit) {
	v.place.leave()
	v.tell(event{name: "response"})
	k.ledger.end(v.keyed)
}

// add adds an answer of so many bytes.
func (k keptAnswers) add(size int) {
	v := k.begin(newMarker())
	v.place.leave()
	v.tell(event{name: "response", data: make([]byte, size)})
	k.ledger.end(v.keyed)
}

// counted says for each key whether a shutdown waits for who visits it now.
func (k keptAnswers) counted(keys ...string) map[string]bool {
	counted := map[string]bool{}
	for _, key := range keys {
		counted[key] = k.begin(key).isCounted
	}
	return counted
}

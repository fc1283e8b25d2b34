package test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A reader that stops reading holds up neither commands nor SIGTERM. What was
// dropped meanwhile is told, and what matters is dropped last.
func TestALogThatNobodyReadsHoldsNothingUp(t *testing.T) {
	t.Parallel()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd := serverCommand(t)
	s := startLogging(t, cmd, read, write)

	const refusals = 3000
	for range refusals {
		response, _, err := s.send(context.Background(), "GET", "/nowhere", "")
		if err != nil || response.StatusCode != 404 {
			t.Fatal(response, err)
		}
	}
	s.goesOn()

	in, seen, dropped, commands := bufio.NewScanner(read), 0, 0, 0
	for commands == 0 && in.Scan() {
		switch {
		case strings.Contains(in.Text(), "msg=rejected"):
			seen++
		case strings.Contains(in.Text(), "msg=command"):
			commands++
		}
		_, gap, isThere := strings.Cut(in.Text(), " lines_dropped=")
		if isThere {
			var n int
			fmt.Sscan(gap, &n)
			dropped += n
		}
	}
	if commands != 1 || dropped == 0 || seen+dropped != refusals {
		t.Errorf("%d refusals are told, %d lines were dropped; want %d together", seen, dropped, refusals)
	}
	for range refusals { // and nobody reads on
		s.send(context.Background(), "GET", "/nowhere", "")
	}
	s.stop()
}

// startLogging starts a server whose log goes to a pipe, and reads it up to where
// the server listens.
func startLogging(t testing.TB, cmd *exec.Cmd, read, write *os.File) *testServer {
	t.Helper()
	s := &testServer{t: t, cmd: cmd, stderr: &syncBuffer{}, done: make(chan error, 1)}
	cmd.Stderr = write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	go func() { s.done <- cmd.Wait() }()
	t.Cleanup(s.stop)
	line := make([]byte, 1)
	var text []byte
	for !strings.Contains(string(text), "msg=listening") || line[0] != '\n' {
		if _, err := read.Read(line); err != nil {
			t.Fatal(err)
		}
		text = append(text, line[0])
	}
	_, rest, _ := strings.Cut(string(text), "msg=listening addr=")
	addr, _, _ := strings.Cut(rest, " ")
	s.url = "http://" + addr
	return s
}

// A client that has an answer or a rejection can name it to the operator.
func TestAnAnswerAndTheLogHaveOneRequestID(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TOKEN=correct")
	for _, test := range []struct{ command, token, logged string }{
		{"hello", "correct", "msg=command request=%s "},
		{"exits", "correct", "msg=command request=%s "},
		{"hello", "wrong", "msg=rejected request=%s "},
	} {
		response, body, err := s.send(context.Background(), "POST", "/command", `{"command":"`+test.command+`"}`,
			and(asJSON, "Authorization", "Bearer "+test.token)...)
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			RequestID string `json:"request_id"`
		}
		json.Unmarshal([]byte(body), &got)
		if diff := cmp.Diff(response.Header.Get("X-Request-Id"), got.RequestID); diff != "" || got.RequestID == "" {
			t.Errorf("%s: request_id (-header +body):\n%s%s", test.command, diff, body)
		}
		s.logged(fmt.Sprintf(test.logged, got.RequestID))
	}
}

// A message of the server's own is in the log, what the agent says is not.
func TestTheLogHasTheServersOwnReasonsOnly(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TIMEOUT=1s")
	s.ask("waits")
	s.logged(`reason="the command took longer than VM_TIMEOUT`)
	if got := s.ask(`prints {"type":"result","is_error":true,"result":"sesame"}`); got.Error == nil || !strings.Contains(got.Error.Message, "sesame") {
		t.Errorf("%+v", got)
	}
	s.logged("code=agent_error")
	if strings.Contains(s.stderr.String(), "sesame") {
		t.Errorf("the log quotes the agent:\n%s", s.stderr)
	}
}

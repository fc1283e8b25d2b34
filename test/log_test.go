package test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
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
		case strings.Contains(in.Text(), "msg=refused"):
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

package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// streamReader reads an event stream, event by event.
type streamReader struct {
	t  *testing.T
	in *bufio.Reader
}

// join sends a command with a key, as a client of events.
func (s *testServer) join(t *testing.T, key, command string) streamReader {
	t.Helper()
	body := fmt.Sprintf(`{"command":%q}`, command)
	request, err := http.NewRequest("POST", s.url+"/command", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	header := slices.Concat(s.authorization(), asJSON, asStream, withKey(key))
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := unbuffered().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	return streamReader{t, bufio.NewReader(response.Body)}
}

// next returns the next event in short: its name and what its data says.
func (r streamReader) next() string {
	r.t.Helper()
	for {
		text, err := r.in.ReadString('\n')
		if err != nil {
			return err.Error()
		}
		name, isEvent := strings.CutPrefix(text, "event: ")
		if !isEvent {
			continue
		}
		data, _ := r.in.ReadString('\n')
		return inWords(strings.TrimSpace(name), strings.TrimPrefix(data, "data: "))
	}
}

// rest returns what is left.
func (r streamReader) rest() (events []string) {
	for {
		e := r.next()
		if e == io.EOF.Error() {
			return events
		}
		events = append(events, e)
	}
}

// inWords is what distinguishes an event of these tests.
func inWords(name, data string) string {
	switch {
	case name == "queued":
		return "queued " + strings.TrimSpace(data)
	case strings.Contains(data, `"init"`):
		return "init"
	case name == "agent":
		var line struct {
			Type, Result string
			Message      struct{ Content []struct{ Text string } }
		}
		json.Unmarshal([]byte(data), &line)
		text := line.Result
		for _, block := range line.Message.Content {
			text += block.Text
		}
		return line.Type + " " + text
	default:
		var status string
		fmt.Sscanf(data, `{"status":%q`, &status)
		return name + " " + status
	}
}

// The last of these behaviours' words, which every client of events hears.
var lastWords = []string{
	"assistant a subagent's words are not the agent's", "assistant subagent",
	"assistant waits-to-go", "result waits-to-go", "response success",
}

func TestAStreamThatJoinsIsAsIfItHadBeenThere(t *testing.T) {
	t.Parallel()
	s := startKeyed(t, "VM_HEARTBEAT=50ms")
	first := s.join(t, "a", "waits-to-go")
	if diff := cmp.Diff("init", first.next()); diff != "" {
		t.Errorf("the first event (-want +got):\n%s", diff)
	}
	waiting := s.join(t, "b", "hello")
	if diff := cmp.Diff(`queued {"position":1}`, waiting.next()); diff != "" {
		t.Errorf("while it waits (-want +got):\n%s", diff)
	}
	again := s.join(t, "b", "hello")
	if diff := cmp.Diff(`queued {"position":1}`, again.next()); diff != "" {
		t.Errorf("who joins while it waits (-want +got):\n%s", diff)
	}
	second := s.join(t, "a", "waits-to-go")
	if diff := cmp.Diff("init", second.next()); diff != "" {
		t.Errorf("who joins while it runs (-want +got):\n%s", diff)
	}
	s.put("go")

	if diff := cmp.Diff(lastWords, second.rest()); diff != "" {
		t.Errorf("the newest (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(lastWords, first.rest()); diff != "" {
		t.Errorf("the one before it (-want +got):\n%s", diff)
	}
	heard := again.rest()
	if len(heard) < 5 || heard[0] != "init" || heard[len(heard)-1] != "response success" {
		t.Errorf("who joined while it waited heard %q", heard)
	}
	if diff := cmp.Diff([]string{"response success"}, s.join(t, "a", "waits-to-go").rest()); diff != "" {
		t.Errorf("who comes afterwards (-want +got):\n%s", diff)
	}
}

// A stream that nobody reads holds up neither its agent nor the next command, with a key
// or without one.
func TestAStreamThatNobodyReadsDelaysNobody(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"", "a"} {
		s := startKeyed(t, "VM_TIMEOUT=5m")
		header := slices.Concat(asStream, []string{"Authorization", "Bearer correct"})
		if key != "" {
			header = slices.Concat(header, withKey(key))
		}
		s.unread(t, "emits 20000", header...) // 20 MB, more than the kernel's buffers hold
		s.queued(0)
		if got := s.ask("hello"); got.Status != "success" { // which waits for its turn
			t.Errorf("with the key %q the next command is answered %+v", key, got)
		}
		if got := s.prompts(); len(got) != 3 { // three words
			t.Errorf("what ran is %q", got)
		}
	}
}

// unread sends a command, and reads nothing of its answer.
func (s *testServer) unread(t *testing.T, command string, header ...string) {
	t.Helper()
	body := fmt.Sprintf(`{"command":%q}`, command)
	lines := ""
	for i := 0; i < len(header); i += 2 {
		lines += header[i] + ": " + header[i+1] + "\r\n"
	}
	fmt.Fprintf(s.dial(t), "POST /command HTTP/1.1\r\nHost: localhost\r\n"+
		"Content-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", lines, len(body), body)
}

// The answer of a client that does not read is dropped with its connection, and the server
// ends.
func TestAClientThatDoesNotReadDelaysNoShutdown(t *testing.T) {
	t.Parallel()
	header := slices.Concat(asStream, []string{"Authorization", "Bearer correct"})
	for range 5 {
		s := startKeyed(t, "VM_SHUTDOWN_GRACE=1s")
		s.unread(t, "emits 20000", header...) // 20 MB, more than the kernel's buffers hold
		s.logged("msg=command")
		wasDropped := strings.Contains(s.stderr.String(), "msg=client") // by a write's own deadline
		s.cmd.Process.Signal(syscall.SIGTERM)
		if err := s.wait(); err != nil {
			t.Errorf("exit: %v", err)
		}
		if wasDropped {
			continue
		}
		if strings.Contains(s.stderr.String(), "answered=true") {
			t.Errorf("it had read its answer:\n%s", s.stderr)
		}
		return
	}
	t.Error("it was always dropped before, so this proves nothing")
}

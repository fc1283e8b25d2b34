package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

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
		m := parseLine([]byte(data))
		return m.Type + " " + m.text() + m.Result
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
	if diff := cmp.Diff([]string{"response success"}, first.rest()); diff != "" {
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

// A client that reads too slowly loses events. Nobody waits for it, and it gets its
// response once it reads on. The control, without a key, holds its agent back.
func TestAStreamThatDoesNotKeepUpDelaysNobody(t *testing.T) {
	t.Parallel()
	s := startKeyed(t, "VM_TIMEOUT=5m")
	const lines = 20000 // of 1 kB: more than the kernel's buffers hold
	command := fmt.Sprint("emits ", lines)

	slow := s.join(t, "a", command)
	hurry := make(chan struct{})
	heard := make(chan string, 1)
	go func() {
		in := bufio.NewReaderSize(hesitant{slow.in, hurry}, 32<<10)
		data, err := io.ReadAll(in)
		heard <- fmt.Sprint(string(data), err)
	}()
	_, body := s.askWithKey("a", command) // beside it
	if !strings.Contains(body, `"success"`) {
		t.Errorf("who joined is answered %s", body)
	}
	_, body = s.askWithKey("b", "hello")
	if !strings.Contains(body, `"success"`) {
		t.Errorf("the next command is answered %s", body)
	}
	close(hurry)
	events, end, _ := strings.Cut(<-heard, "\nevent: response\n")
	if !strings.Contains(end, `"success"`) || !strings.HasSuffix(end, "<nil>") {
		t.Errorf("the last that it hears is %q", end)
	}
	if count := strings.Count(events, "event: agent\n"); count > lines*3/4 {
		t.Errorf("it heard %d events, so it was not too slow", count)
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	control := make(chan outcome, 1)
	s.stream(t, &http.Client{Transport: authorized{}}, command)
	s.background(ctx, "hello", control)
	select {
	case o := <-control:
		t.Errorf("the control: the next command was answered beside the slow one: %+v", o)
	case <-time.After(time.Second):
	}
}

// hesitant reads 20 kB a second at most, until it is told to hurry.
type hesitant struct {
	io.Reader
	hurry <-chan struct{}
}

func (h hesitant) Read(p []byte) (int, error) {
	select {
	case <-h.hurry:
		return h.Reader.Read(p)
	case <-time.After(200 * time.Millisecond):
		return h.Reader.Read(p[:min(len(p), 4<<10)])
	}
}

// authorized adds the token to each request.
type authorized struct{}

func (authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("Authorization", "Bearer correct")
	return http.DefaultTransport.RoundTrip(r)
}

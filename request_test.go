package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
)

const hello = `{"command":"hello"}`

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

// The bodies of photos are large: only a few are in memory at a time, whoever sends
// how many, and a small one waits for none. The control lets as many in as there are.
func TestLargeBodiesAreReadAFewAtATime(t *testing.T) {
	t.Parallel()
	const senders = 20
	for _, test := range []struct {
		name  string
		queue int
		want  int32
	}{{"VM_QUEUE + 2", 1, 3}, {"the control", senders, senders}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			read := readBody(test.queue)
			var held, small atomic.Int32
			maxElements := make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				size, release, err := read(w, r)
				defer release()
				switch {
				case err != nil:
					t.Error(err)
				case size < smallBody:
					small.Add(1)
				default:
					held.Add(1)
					<-maxElements
				}
			}))
			defer server.Close()
			send := func(size int) {
				body := strings.NewReader(strings.Repeat(" ", size))
				request, _ := http.NewRequestWithContext(context.Background(), "POST", server.URL, body)
				response, err := http.DefaultClient.Do(request)
				if err != nil {
					t.Error(err)
					return
				}
				response.Body.Close()
			}

			for range senders {
				go send(200 << 10)
			}
			eventually(t, "some are held", func() bool { return held.Load() >= test.want })
			send(smallBody - 1)
			if held.Load() != test.want || small.Load() != 1 {
				t.Errorf("%d large bodies are held, %d small ones were read", held.Load(), small.Load())
			}
			close(maxElements)
			eventually(t, "each has its turn", func() bool { return held.Load() == senders })
		})
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, seed := range []string{
		hello, `{"command":"a","session_id":"` + testSession + `"}`,
		`{"command":"\u0000"}`, `{}`, `{"command":"a"}{}`, `[`, "\xff",
	} {
		f.Add([]byte(seed))
	}
	uuid := regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	f.Fuzz(func(t *testing.T, body []byte) {
		prompt, session, err := decode(body)
		if err != nil {
			return
		}
		blank := strings.TrimSpace(prompt) == ""
		if blank || strings.Contains(prompt, "\x00") || session != "" && !uuid.MatchString(session) {
			t.Errorf("accepted %q as %q in %q", body, prompt, session)
		}
	})
}

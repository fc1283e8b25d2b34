package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

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

package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

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

func TestAcceptIsReadAsHTTPMeansIt(t *testing.T) {
	t.Parallel()
	tests := []struct {
		accept   string
		isStream bool
	}{
		{"", false},
		{"*/*", false},
		{"text/event-stream", true},
		{"Text/Event-Stream", true},
		{"application/json, text/event-stream", true},
		{"text/event-stream;q=0", false},
		{"application/json, text/event-stream;q=0.5", false},
		{"application/json;q=0.5, text/event-stream", true},
		{"text/event-streams", false},
	}
	for _, test := range tests {
		response := make(chan string, 1)
		response <- "{}"
		w := httptest.NewRecorder()
		replyTo(w, test.accept, 0, response)
		if got := strings.HasPrefix(w.Body.String(), "event:"); got != test.isStream {
			t.Errorf("Accept: %s is answered with a stream: %v", test.accept, got)
		}
	}
}

// slowWriter takes a time for each write.
type slowWriter struct {
	*httptest.ResponseRecorder
	pause time.Duration
}

func (w slowWriter) Write(p []byte) (int, error) {
	time.Sleep(w.pause)
	return w.ResponseRecorder.Write(p)
}

// A write takes longer than a heartbeat here, so that after each, and after the
// response too, the next one is due.
func TestHeartbeatsComeBeforeTheResponseAndNothingAfterIt(t *testing.T) {
	t.Parallel()
	for _, form := range []struct{ accept, beat, end string }{
		{"application/json", "\n", "{}\n"},
		{"text/event-stream", ":\n\n", "event: response\ndata: {}\n\n"},
	} {
		t.Run(form.accept, func(t *testing.T) {
			for range 100 { // as what is taken first is random
				synctest.Test(t, func(t *testing.T) {
					response := make(chan string)
					go func() {
						time.Sleep(20 * time.Second)
						response <- "{}"
					}()
					w := slowWriter{httptest.NewRecorder(), 1500 * time.Millisecond}
					replyTo(w, form.accept, time.Second, response)
					got := w.Body.String()
					beats, complete := strings.CutSuffix(got, form.end)
					if !complete || strings.ReplaceAll(beats, form.beat, "") != "" {
						t.Errorf("%q is not heartbeats and %q", got, form.end)
					}
					if count := len(beats) / len(form.beat); count < 10 {
						t.Errorf("%d heartbeats", count)
					}
				})
			}
		})
	}
}

package test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAStreamTellsThePlacesTheLinesAndTheAnswer(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TOKEN=correct", "VM_HEARTBEAT=50ms")
	outcomes := make(chan reply, 3)
	s.background(context.Background(), "waits-to-go", outcomes)
	s.queued(0)
	s.background(context.Background(), "sleeps 2s", outcomes)
	s.queued(1)
	s.background(context.Background(), "streamed", outcomes, "Accept", "text/event-stream")
	s.queued(2)
	s.put("go")
	var o reply
	for o.name != "streamed" {
		o = <-outcomes
	}
	var got []string
	beats := 0
	for event := range strings.SplitSeq(strings.TrimSuffix(o.body, "\n\n"), "\n\n") {
		name, data, _ := strings.Cut(event, "\n")
		data = strings.TrimPrefix(data, "data: ")
		var fields struct{ Type, Result string }
		json.Unmarshal([]byte(data), &fields)
		switch name {
		case ":":
			beats++
		case "event: agent":
			got = append(got, fields.Type)
		case "event: response":
			got = append(got, "response "+fields.Result)
		default:
			got = append(got, name+" "+data)
		}
	}
	want := []string{`event: queued {"position":2}`, `event: queued {"position":1}`,
		"system", "assistant", "assistant", "assistant", "result", "response streamed"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if beats < 5 {
		t.Errorf("%d heartbeats", beats)
	}
}

func TestACarriageReturnForgesNoEvent(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	_, body, err := s.post(context.Background(), "forges-an-event", "Accept", "text/event-stream")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(body, `"forged"`) {
		t.Errorf("the line did not come through at all: %q", body)
	}
	if strings.Contains(body, "\r") { // which ends a line of a stream, as a newline does
		t.Errorf("a forged event: %q", body)
	}
}

func TestHeartbeatsKeepAWaitingClient(t *testing.T) {
	t.Parallel()
	s := startServer(t, "VM_TOKEN=correct", "VM_HEARTBEAT=100ms")
	outcomes := make(chan reply, 2)
	s.background(context.Background(), "sleeps 2s", outcomes) // beats while it runs
	s.queued(0)
	s.background(context.Background(), "second", outcomes) // beats while it waits
	for range 2 {
		o := <-outcomes
		if beats := len(o.body) - len(strings.TrimLeft(o.body, "\n")); beats < 3 {
			t.Errorf("%s: %d heartbeats", o.name, beats)
		}
		if o.answer.Status != "success" {
			t.Errorf("%s: not valid JSON with its heartbeats: %q", o.name, o.body)
		}
	}
	none := startServer(t, "VM_HEARTBEAT=0") // the control
	none.background(context.Background(), "sleeps 300ms", outcomes)
	if o := <-outcomes; !strings.HasPrefix(o.body, "{") {
		t.Errorf("with VM_HEARTBEAT=0: %q", o.body)
	}
}

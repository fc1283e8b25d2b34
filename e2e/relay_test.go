package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// relay is examples/relay.mjs in front of a server; it keeps what was replied.
type relay struct {
	v       *vm
	url     string
	replies func() []string
}

func startRelay(t *testing.T, v *vm, env ...string) *relay {
	t.Helper()
	replies := &buffer{}
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var message struct{ To, Text string }
		json.NewDecoder(r.Body).Decode(&message)
		replies.Write([]byte(message.To + "> " + strings.ReplaceAll(message.Text, "\n", " ") + "\n"))
	}))
	t.Cleanup(sink.Close)
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatalf("%v: install Node.js", err)
	}
	cmd := exec.Command(node, root(t)+"/examples/relay.mjs")
	cmd.Env = append([]string{"PORT=0", "VM_URL=" + v.url, "REPLY_URL=" + sink.URL, "RETRY_MS=100"}, env...)
	out := &buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	r := &relay{v: v}
	v.eventually("the relay listens", func() bool {
		_, rest, found := strings.Cut(out.String(), "relay: ")
		r.url, _, _ = strings.Cut(rest, "\n")
		return found && strings.Contains(rest, "\n")
	})
	r.replies = func() []string { return strings.Split(strings.TrimSpace(replies.String()), "\n") }
	return r
}

func (r *relay) send(from, text string) {
	r.v.t.Helper()
	data, _ := json.Marshal(map[string]string{"from": from, "text": text})
	response, err := http.Post(r.url, "application/json", bytes.NewReader(data))
	if err != nil || response.StatusCode != http.StatusAccepted {
		r.v.t.Fatalf("webhook: %v %v", response, err)
	}
	response.Body.Close()
}

func (r *relay) waitFor(reply string) {
	r.v.t.Helper()
	r.v.eventually("the sender reads "+reply, func() bool {
		return slices.ContainsFunc(r.replies(), func(line string) bool { return strings.Contains(line, reply) })
	})
}

func TestTheRelayTellsEachSenderHowItGoes(t *testing.T) {
	v := start(t, "VM_QUEUE=1", "VM_TIMEOUT=10s", "VM_SHUTDOWN_GRACE=1s")
	r := startRelay(t, v)
	r.send("ann", "the first of ann")
	r.waitFor("ann> the first of ann")
	r.send("ann", "recall")
	r.send("ben", "bash: echo from ben")
	r.waitFor("ben> ⚙ scripted")
	r.waitFor("ben> from ben")
	v.eventually("ann's conversation went on", func() bool {
		lines := r.replies()
		return len(slices.DeleteFunc(lines, func(line string) bool { return line != "ann> the first of ann" })) == 2
	})

	// One runs, one waits, the third is refused and tried again until it runs.
	r.send("one", "bash: sleep 3; echo one is done")
	r.waitFor("one> ⚙")
	r.send("two", "bash: sleep 2; echo two is done")
	r.waitFor("two> Waiting; 1 before you.")
	r.send("three", "three is done")
	r.waitFor("three> I have too much to do just now")
	r.waitFor("one> one is done")
	r.waitFor("two> two is done")
	r.waitFor("three> three is done")

	r.send("late", "bash: echo so far; sleep 1000")
	r.waitFor("late> ⚙")
	r.waitFor("late> That took too long, so I stopped it.")
	r.send("stopped", "bash: echo so far; sleep 1000")
	r.waitFor("stopped> ⚙")
	v.stop()
	r.waitFor("stopped> The machine is restarting and I had to stop.")
	r.send("down", "hello")
	r.waitFor("down> The machine is not up yet.")
}

func TestTheRelayDoesNotSendTwiceWhatMayHaveBegun(t *testing.T) {
	if image != "" {
		t.Skip("the same as for the program outside a container")
	}
	v := start(t)
	r := startRelay(t, v)
	r.send("ann", "bash: echo begun; sleep 1000")
	r.waitFor("ann> ⚙")
	calls := len(v.model.Calls())
	v.cmd.Process.Kill()
	<-v.done
	r.waitFor("ann> The connection broke while I worked")
	if got := len(v.model.Calls()); got != calls {
		t.Errorf("the model was asked %d times, then %d", calls, got)
	}
	// Without the server nobody sweeps: end what this test left.
	v.killAll(v.left)
}

func TestTheRelayTellsOfAFailure(t *testing.T) {
	v := start(t, "ANTHROPIC_API_KEY=wrong-key")
	r := startRelay(t, v)
	r.send("ann", "hello")
	r.waitFor("ann> That failed: the model's API refuses the server's credentials")
}

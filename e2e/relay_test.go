package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// relay is examples/relay.mjs in front of a server; it keeps what was replied.
type relay struct {
	v       *vm
	url     string
	cmd     *exec.Cmd
	env     []string
	replies func() []string
}

// startRelayed starts a server as the relay needs it.
func startRelayed(t *testing.T, env ...string) *vm {
	t.Helper()
	return start(t, append([]string{"VM_TOKEN=correct"}, env...)...)
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
	r := &relay{v: v}
	r.env = []string{"PORT=0", "VM_URL=" + v.url, "VM_TOKEN=correct", "REPLY_URL=" + sink.URL, "RETRY_MS=100", "STATE=" + t.TempDir() + "/state"}
	r.env = append(r.env, env...)
	r.replies = func() []string { return strings.Split(strings.TrimSpace(replies.String()), "\n") }
	r.start()
	t.Cleanup(r.kill)
	return r
}

func (r *relay) start() {
	r.v.t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		r.v.t.Fatalf("%v: install Node.js", err)
	}
	r.cmd = exec.Command(node, root(r.v.t)+"/examples/relay.mjs")
	r.cmd.Env = r.env
	out := &buffer{}
	r.cmd.Stdout, r.cmd.Stderr = out, out
	if err := r.cmd.Start(); err != nil {
		r.v.t.Fatal(err)
	}
	r.v.eventually("the relay listens", func() bool {
		_, rest, found := strings.Cut(out.String(), "relay: ")
		r.url, _, _ = strings.Cut(rest, "\n")
		return found && strings.Contains(rest, "\n")
	})
}

func (r *relay) kill() {
	r.cmd.Process.Kill()
	r.cmd.Wait()
}

func (r *relay) send(from, text string) {
	r.v.t.Helper()
	id := strconv.FormatInt(time.Now().UnixNano(), 36)
	data, _ := json.Marshal(map[string]string{"id": id, "from": from, "text": text})
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
	v := startRelayed(t, "VM_QUEUE=1", "VM_TIMEOUT=30s", "VM_SHUTDOWN_GRACE=1s")
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
	r.send("stopped", "Stop")
	r.waitFor("stopped> I stopped.")
	r.send("stopped", "stop")
	r.waitFor("stopped> Nothing runs.")
	r.send("restarted", "bash: echo so far; sleep 1000")
	r.waitFor("restarted> ⚙")
	v.stop()
	r.waitFor("restarted> The machine is restarting. I begin again then.")
	r.send("down", "hello")
	r.waitFor("down> The machine is not up yet.")
}

// What is stopped while it is tried again is not begun.
func TestTheRelayDoesNotBeginWhatWasStopped(t *testing.T) {
	v := startRelayed(t, "VM_QUEUE=0")
	r := startRelay(t, v)
	r.send("one", "bash: while [ ! -e go ]; do sleep 0.1; done; echo it went on")
	r.waitFor("one> ⚙")
	r.send("two", "two is done")
	r.waitFor("two> I have too much to do just now")
	r.send("two", "stop")
	if err := os.WriteFile(v.dir+"/workspace/go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.waitFor("one> it went on")
	r.waitFor("two> I stopped, before it was begun or after it was over.")
	if said := strings.Join(r.replies(), "\n"); strings.Contains(said, "two> two is done") {
		t.Errorf("what was stopped was begun:\n%s", said)
	}
}

// What a proxy answers while the machine restarts says nothing of the command.
func TestTheRelayAsksAgainAfterAProxysOwnError(t *testing.T) {
	v := startRelayed(t)
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusBadGateway)
			w.Write([]byte("<html>Bad Gateway</html>"))
			return
		}
		target, _ := url.Parse(v.url)
		httputil.NewSingleHostReverseProxy(target).ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	r := startRelay(t, v, "VM_URL="+proxy.URL)
	r.send("ann", "hello")
	r.waitFor("ann> The machine is restarting. I keep trying.")
	r.waitFor("ann> hello")
}

// A relay that is killed joins what it began, when it is there again.
func TestARelayThatIsKilledLosesAndRepeatsNothing(t *testing.T) {
	v := startRelayed(t, "VM_TIMEOUT=1m")
	r := startRelay(t, v)
	r.send("ann", "bash: while [ ! -e go ]; do sleep 0.1; done; echo it went on")
	r.waitFor("ann> ⚙")
	calls := len(v.model.Calls())
	r.kill()
	r.start()
	v.eventually("the relay is there again", func() bool { return strings.Count(v.log.String(), "msg=client") == 1 })
	if err := os.WriteFile(v.dir+"/workspace/go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r.waitFor("ann> it went on")
	if got := len(v.model.Calls()); got != calls+1 { // with what the tool said
		t.Errorf("the model was asked %d times, then %d", calls, got)
	}
}

// A server that is killed took the command with it, and a new one begins anew.
func TestTheRelayBeginsAnewWithANewServer(t *testing.T) {
	if image != "" {
		t.Skip("the same as for the program outside a container")
	}
	v := startRelayed(t)
	r := startRelay(t, v)
	r.send("ann", "bash: while [ ! -e go ]; do sleep 0.1; done; echo it went on")
	r.waitFor("ann> ⚙")
	v.cmd.Process.Kill()
	<-v.done
	r.waitFor("ann> The machine is not up yet.")
	v.killAll(v.left) // as without the server nobody sweeps
	if err := os.WriteFile(v.dir+"/workspace/go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	startIn(t, v.dir, "VM_TOKEN=correct", "VM_ADDR="+strings.TrimPrefix(v.url, "http://"))
	r.waitFor("ann> it went on")
}

func TestTheRelayTellsOfAFailure(t *testing.T) {
	v := startRelayed(t, "ANTHROPIC_API_KEY=wrong-key")
	r := startRelay(t, v)
	r.send("ann", "hello")
	r.waitFor("ann> That failed: the model's API refuses the server's credentials")
}

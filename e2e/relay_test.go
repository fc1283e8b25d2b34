package main

import (
	"bytes"
	"encoding/base64"
	pictures "image"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const ann, ben = "whatsapp:+15550100", "whatsapp:+15550101"

// untilGo works until a test makes a file in the workspace.
const untilGo = "bash: while [ ! -e go ]; do sleep 0.1; done; echo it went on"

// letGo makes that file.
func (v *vm) letGo() {
	v.t.Helper()
	if err := os.WriteFile(v.dir+"/workspace/go", nil, 0o644); err != nil {
		v.t.Fatal(err)
	}
}

func TestTheRelayTakesAPhotoInAndAScreenshotOut(t *testing.T) {
	needChromium(t)
	v := startRelayed(t)
	r := startRelay(t, map[string]string{ann: v.url})
	photo := picture(t, 8)
	r.say(ann, "this looks broken", photo)
	r.reads(ann, "this looks broken")
	if _, got := v.shown("this looks broken"); len(got) != 1 || !bytes.Equal(got[0], photo) {
		t.Errorf("the model was shown %d pictures, or not this one", len(got))
	}

	r.say(ann, "open: data:text/html,<h1 style='height:4000px'>It works</h1>\n"+
		`tool: mcp__playwright__browser_take_screenshot {"type":"png","fullPage":true}`+"\nsay: here it is")
	r.reads(ann, "here it is")
	var link string
	r.eventually("the screenshot comes", func() bool {
		list := r.heard()
		link = list[len(list)-1].Media
		return link != ""
	})
	kind, data := r.fetch(link)
	page, _, err := pictures.DecodeConfig(bytes.NewReader(data))
	if err != nil || !strings.HasPrefix(kind, "image/") || page.Height <= page.Width {
		t.Errorf("%s of %d bytes, %+v: %v", kind, len(data), page, err)
	}
}

// A document goes into the agent's inbox, and what the agent puts into outbox comes back.
func TestTheRelayTakesAFileInAndAnotherOut(t *testing.T) {
	v := startRelayed(t)
	r := startRelay(t, map[string]string{ann: v.url})
	document := bytes.Repeat([]byte("%PDF \x00\xff"), 10_000)
	r.deliver(ann, "bash: mkdir -p outbox && cat 'inbox/my report.pdf' 'inbox/my report.pdf' >outbox/twice.pdf\nsay: it is twice as long",
		[]map[string]string{{"type": "application/pdf", "name": "my report.pdf", "data": base64.StdEncoding.EncodeToString(document)}})
	r.reads(ann, "it is twice as long")
	kind, data := r.fetch(r.reads(ann, "📎 twice.pdf").Media)
	if kind != "application/pdf" || !bytes.Equal(data, append(document, document...)) {
		t.Errorf("%s of %d bytes", kind, len(data))
	}
	calls := v.model.Calls()
	if prompt := calls[len(calls)-1].Prompt; !strings.Contains(prompt, `"inbox/my report.pdf" in your workspace: application/pdf`) {
		t.Errorf("the agent is told %q", prompt)
	}
}

func TestTheRelayStopsWhatRunsAndWhatWaits(t *testing.T) {
	v := startRelayed(t)
	r := startRelay(t, map[string]string{ann: v.url})
	r.say(ann, "bash: echo so far; sleep 1000")
	r.reads(ann, "⚙")
	r.say(ann, "this waits")
	r.say(ann, "Stop")
	r.reads(ann, "Stopping…")
	r.reads(ann, "I stopped. Say")
	r.reads(ann, "I stopped before I began that.")
	r.say(ann, "recall")
	r.readsOnce(ann, "bash: echo so far; sleep 1000") // the conversation went on
	for _, call := range v.model.Calls() {
		if strings.Contains(call.Prompt, "this waits") {
			t.Error("what waited was begun")
		}
	}
}

// startCrowded starts a server that works for ann, and has no place in its queue for
// ben, whose command is tried again and again.
func startCrowded(t *testing.T, env ...string) (*vm, *relay) {
	t.Helper()
	v := startRelayed(t, append(env, "VM_QUEUE=0")...)
	r := startRelay(t, map[string]string{ann: v.url, ben: v.url})
	r.say(ann, untilGo)
	r.reads(ann, "⚙")
	r.say(ben, "ben's turn")
	r.reads(ben, "I'm busy right now")
	return v, r
}

func TestTheRelayTellsHowLongItTakes(t *testing.T) {
	t.Parallel()
	// Longer than VM_TIMEOUT, or the CLI would move Bash's command to the background before.
	v, r := startCrowded(t, "VM_TIMEOUT=40s", "BASH_DEFAULT_TIMEOUT_MS=120000")
	v.letGo()
	r.readsOnce(ann, "it went on")
	r.readsOnce(ben, "ben's turn")
	r.say(ann, "bash: echo so far; sleep 1000")
	r.reads(ann, "That took too long, so I stopped it.")
}

// What is stopped while it is tried again is not begun.
func TestTheRelayDoesNotBeginWhatWasStopped(t *testing.T) {
	v, r := startCrowded(t)
	r.say(ben, "stop")
	v.letGo()
	r.readsOnce(ann, "it went on")
	r.reads(ben, "I stopped that, before it was begun or after it was over.")
	for _, s := range r.heard() {
		if s.Body == "ben's turn" {
			t.Error("what was stopped was begun")
		}
	}
}

func TestTwoPeopleHaveTwoMachines(t *testing.T) {
	anns, bens := startRelayed(t), startRelayed(t)
	r := startRelay(t, map[string]string{ann: anns.url, ben: bens.url})
	r.say(ann, untilGo)
	r.reads(ann, "⚙")
	r.say(ben, "bash: touch here; echo ben is done")
	r.readsOnce(ben, "ben is done") // while ann's works
	anns.letGo()
	r.readsOnce(ann, "it went on")
	for name, want := range map[*vm]bool{anns: false, bens: true} {
		if _, err := os.Stat(name.dir + "/workspace/here"); (err == nil) != want {
			t.Errorf("ben's file: %v, want %v", err, want)
		}
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
	r := startRelay(t, map[string]string{ann: proxy.URL})
	r.say(ann, "hello")
	r.reads(ann, "The machine is restarting. I'll keep trying.")
	r.readsOnce(ann, "hello")
}

// A relay that is killed joins what it began, when it is there again.
func TestARelayThatIsKilledLosesAndRepeatsNothing(t *testing.T) {
	v := startRelayed(t, "VM_TIMEOUT=5m")
	r := startRelay(t, map[string]string{ann: v.url})
	r.say(ann, untilGo)
	r.reads(ann, "⚙")
	r.say(ann, "what came next")
	calls := len(v.model.Calls())
	end(r.cmd)
	r.start()
	v.eventually("the relay is there again", func() bool { return strings.Count(v.log.String(), "msg=client") == 1 })
	v.letGo()
	r.readsOnce(ann, "it went on", "what came next")
	if diff := cmp.Diff(calls+2, len(v.model.Calls())); diff != "" { // with what the tool said, and the next
		t.Errorf("how often the model was asked (-want +got):\n%s", diff)
	}
}

// A machine that restarts tells so, and the command begins anew on the next one.
func TestTheRelayBeginsAnewWithARestartedMachine(t *testing.T) {
	for _, test := range []struct {
		name, word string
		end        func(*vm)
	}{
		{"stopped", "The machine is restarting. I'll start again then.", (*vm).stop},
		{"killed", "The machine is not up yet.", func(v *vm) {
			v.cmd.Process.Kill()
			<-v.done
			v.killAll(v.left) // as without the server nobody sweeps
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := startRelayed(t, "VM_SHUTDOWN_GRACE=0s")
			r := startRelay(t, map[string]string{ann: v.url})
			r.say(ann, untilGo)
			r.reads(ann, "⚙")
			test.end(v)
			r.reads(ann, test.word)
			v.letGo()
			startIn(t, v.dir, "VM_TOKEN=correct", "VM_ADDR="+strings.TrimPrefix(v.url, "http://"))
			r.readsOnce(ann, "it went on")
		})
	}
}

func TestTheRelayTellsOfAFailure(t *testing.T) {
	v := startRelayed(t, "ANTHROPIC_API_KEY=wrong-key")
	r := startRelay(t, map[string]string{ann: v.url})
	r.say(ann, "hello")
	r.reads(ann, "The machine can't log in to Claude")
}

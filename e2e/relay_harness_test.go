package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// relay is examples/whatsapp-relay, between a Twilio on loopback and servers.
type relay struct {
	t       *testing.T
	twilio  string // its URL
	webhook string
	cmd     *exec.Cmd
	env     []string
	log     *buffer
}

// said is what a person was told.
type said struct{ To, Body, Media string }

// startRelayed starts a server as the relay needs it.
func startRelayed(t *testing.T, env ...string) *vm {
	t.Helper()
	return start(t, append([]string{"VM_TOKEN=correct"}, env...)...)
}

// startRelay starts a relay for people, by the URL of each one's server.
func startRelay(t *testing.T, people map[string]string) *relay {
	t.Helper()
	need(t, "../examples/whatsapp-relay/node_modules/twilio", "make relay installs it")
	r := &relay{t: t}
	machines := map[string]map[string]string{}
	for name, url := range people {
		machines[name] = map[string]string{"url": url, "token": "correct"}
	}
	data, _ := json.Marshal(machines)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/people.json", data, 0o644); err != nil {
		t.Fatal(err)
	}
	fake, log := r.node("fake-twilio.js")
	t.Cleanup(func() { end(fake) })
	r.eventually("Twilio listens", func() bool {
		r.twilio, _, _ = strings.Cut(log.String(), "\n")
		return strings.HasPrefix(r.twilio, "http")
	})
	r.env = []string{"PORT=0", "DATA=" + dir + "/data", "PEOPLE=" + dir + "/people.json",
		"PUBLIC_URL=https://relay.example", "TWILIO_API=" + r.twilio, "TWILIO_AUTH_TOKEN=the account's token",
		"TWILIO_ACCOUNT_SID=AC" + strings.Repeat("0", 32), "PROGRESS_SECONDS=0", "RETRY_SECONDS=0.1", "MERGE_SECONDS=0"}
	r.start()
	t.Cleanup(func() {
		end(r.cmd)
		if t.Failed() {
			t.Logf("the relay's log:\n%s", r.log)
		}
	})
	return r
}

// node runs one of the relay's programs.
func (r *relay) node(name string) (*exec.Cmd, *buffer) {
	r.t.Helper()
	cmd := exec.Command("node", name)
	cmd.Dir = root(r.t) + "/examples/whatsapp-relay"
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, r.env...)
	out := &buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		r.t.Fatalf("%v: install Node.js", err)
	}
	return cmd, out
}

func (r *relay) start() {
	r.t.Helper()
	r.cmd, r.log = r.node("server.js")
	r.eventually("the relay listens", func() bool {
		_, rest, _ := strings.Cut(r.log.String(), "relay: http")
		address, _, complete := strings.Cut(rest, "\n")
		r.webhook = "http" + address
		return complete
	})
}

func end(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

// say delivers a person's message as Twilio does.
func (r *relay) say(from, text string, photos ...[]byte) {
	r.t.Helper()
	media := []map[string]string{}
	for _, photo := range photos {
		data := base64.StdEncoding.EncodeToString(photo)
		media = append(media, map[string]string{"type": "image/png", "data": data})
	}
	r.deliver(from, text, media)
}

// deliver is say with media of any kind: their type, their data in base64 and their name.
func (r *relay) deliver(from, text string, media []map[string]string) {
	r.t.Helper()
	message := map[string]any{"relay": r.webhook, "from": from, "text": text, "media": media}
	data, _ := json.Marshal(message)
	response, err := http.Post(r.twilio+"/say", "application/json", bytes.NewReader(data))
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()
	var delivered struct{ Status int }
	json.NewDecoder(response.Body).Decode(&delivered)
	if delivered.Status != http.StatusOK {
		r.t.Fatalf("the webhook answers %d", delivered.Status)
	}
}

// heard is all that people were told so far.
func (r *relay) heard() (list []said) {
	r.t.Helper()
	response, err := http.Get(r.twilio + "/said")
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&list); err != nil {
		r.t.Fatal(err)
	}
	return list
}

// reads waits until a person was told a text, and returns what that came with.
func (r *relay) reads(person, text string) (found said) {
	r.t.Helper()
	r.eventually(person+" reads "+text, func() bool {
		list := r.heard()
		i := slices.IndexFunc(list, func(s said) bool {
			return s.To == person && strings.Contains(s.Body, text)
		})
		if i >= 0 {
			found = list[i]
		}
		return i >= 0
	})
	return found
}

// readsOnce wants that a person was told each of the texts once, when nothing is left
// to tell.
func (r *relay) readsOnce(person string, texts ...string) {
	r.t.Helper()
	for _, text := range texts {
		r.reads(person, text)
	}
	r.say(person, "stop")
	r.reads(person, "Nothing is running.")
	for _, text := range texts {
		count := 0
		for _, s := range r.heard() {
			if s.To == person && s.Body == text {
				count++
			}
		}
		if count != 1 {
			r.t.Errorf("%s was told %q %d times", person, text, count)
		}
	}
}

// fetch is what the public link of a picture serves.
func (r *relay) fetch(link string) (kind string, data []byte) {
	r.t.Helper()
	public, err := url.Parse(link)
	if err != nil {
		r.t.Fatal(err)
	}
	response, err := http.Get(strings.TrimSuffix(r.webhook, "/whatsapp") + public.Path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()
	data, err = io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		r.t.Fatalf("%s: %s %v", link, response.Status, err)
	}
	return response.Header.Get("Content-Type"), data
}

func (r *relay) eventually(what string, condition func() bool) {
	r.t.Helper()
	eventually(r.t, what, condition, func() string {
		return fmt.Sprintf("what was said: %+v; the relay's log:\n%s", r.heard(), r.log)
	})
}

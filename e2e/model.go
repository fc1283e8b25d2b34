// The scripted model: enough of the Messages API, on loopback, for the real
// Claude Code CLI to run against without an account or a network.
//
//	go run ./e2e -addr 127.0.0.1:3002
//
// It follows the lines of the prompt, one model turn a tool call:
//
//	bash: COMMAND         the Bash tool
//	background: COMMAND   the Bash tool with run_in_background
//	open: URL             Playwright's browser_navigate
//	screenshot            Playwright's browser_take_screenshot
//	tool: NAME JSON       any other tool
//	wait: DURATION        nothing is said for so long
//	refuse: STATUS TYPE HEADER=VALUE … - MESSAGE   the API's error, always
//	say: TEXT             the text of the last turn
//	recall                says the conversation's first prompt
//
// The last turn says the text of `say`, else what the last tool returned, else
// the prompt itself. The key "wrong-key" is answered 401.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "loopback `address` to listen on")
	flag.Parse()
	listener, err := net.Listen("tcp", *addr)
	if err == nil && !listener.Addr().(*net.TCPAddr).IP.IsLoopback() {
		err = fmt.Errorf("%q is no loopback address", *addr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "model: cannot listen:", err)
		os.Exit(1)
	}
	fmt.Printf("http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, &model{}))
}

// A call is one request as the model saw it.
type call struct {
	Path     string `json:"path"`
	Key      string `json:"key"`
	Auth     string `json:"authorization"`
	Prompt   string `json:"prompt"`
	Canceled bool   `json:"canceled"`
	Body     string `json:"-"`
}

// model serves the Messages API and, at GET /calls, what it was asked so far.
type model struct {
	mu    sync.Mutex
	calls []*call
}

// Calls returns what the model was asked so far, oldest first.
func (m *model) Calls() []call {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]call, len(m.calls))
	for i, c := range m.calls {
		list[i] = *c
	}
	return list
}

type block struct {
	Type      string          `json:"type"`
	Text      string          `json:"text,omitempty"`
	ID        string          `json:"id,omitempty"`
	Name      string          `json:"name,omitempty"`
	Input     json.RawMessage `json:"input,omitempty"`
	Content   json.RawMessage `json:"content,omitempty"`
	ToolUseID string          `json:"tool_use_id,omitempty"`
}

// blocks reads message content, which may be a plain string.
func blocks(raw json.RawMessage) []block {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return []block{{Type: "text", Text: text}}
	}
	var list []block
	json.Unmarshal(raw, &list)
	return list
}

type message struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
}

func (m *model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/calls" {
		json.NewEncoder(w).Encode(m.Calls())
		return
	}
	var request struct {
		Stream   bool      `json:"stream"`
		Model    string    `json:"model"`
		Messages []message `json:"messages"`
	}
	var body strings.Builder
	err := json.NewDecoder(io.TeeReader(r.Body, &body)).Decode(&request)
	prompt, done, last := conversation(request.Messages)
	c := &call{Path: r.URL.Path, Key: r.Header.Get("X-Api-Key"), Auth: r.Header.Get("Authorization"), Prompt: prompt, Body: body.String()}
	m.mu.Lock()
	m.calls = append(m.calls, c)
	m.mu.Unlock()
	switch {
	case c.Key == "wrong-key":
		refuse(w, http.StatusUnauthorized, "authentication_error", "invalid x-api-key")
		return
	case r.URL.Path == "/v1/messages/count_tokens":
		fmt.Fprint(w, `{"input_tokens":100}`)
		return
	case r.URL.Path != "/v1/messages":
		refuse(w, http.StatusNotFound, "not_found_error", r.URL.Path)
		return
	case err != nil:
		refuse(w, http.StatusBadRequest, "invalid_request_error", err.Error())
		return
	}
	if refused(w, prompt) {
		return
	}
	answer, pause := next(prompt, done, last)
	if first, _, _ := conversation(request.Messages[:min(1, len(request.Messages))]); prompt == "recall" {
		answer.Text = first
	}
	reply := map[string]any{
		"id": fmt.Sprintf("msg_%d", time.Now().UnixNano()), "type": "message", "role": "assistant", "model": request.Model,
		"content": []block{}, "stop_reason": nil, "stop_sequence": nil, "usage": map[string]int{"input_tokens": 100, "output_tokens": 10},
	}
	stop := "end_turn"
	if answer.Type == "tool_use" {
		stop = "tool_use"
	}
	if !request.Stream {
		reply["content"], reply["stop_reason"] = []block{answer}, stop
		json.NewEncoder(w).Encode(reply)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(kind string, fields map[string]any) {
		fields["type"] = kind
		data, _ := json.Marshal(fields)
		fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, data)
		w.(http.Flusher).Flush()
	}
	send("message_start", map[string]any{"message": reply})
	select {
	case <-time.After(pause):
	case <-r.Context().Done():
		m.mu.Lock()
		c.Canceled = true
		m.mu.Unlock()
		return
	}
	start, delta := map[string]any{"type": "text", "text": ""}, map[string]any{"type": "text_delta", "text": answer.Text}
	if stop == "tool_use" {
		start = map[string]any{"type": "tool_use", "id": answer.ID, "name": answer.Name, "input": struct{}{}}
		delta = map[string]any{"type": "input_json_delta", "partial_json": string(answer.Input)}
	}
	send("content_block_start", map[string]any{"index": 0, "content_block": start})
	send("content_block_delta", map[string]any{"index": 0, "delta": delta})
	send("content_block_stop", map[string]any{"index": 0})
	send("message_delta", map[string]any{"delta": map[string]any{"stop_reason": stop, "stop_sequence": nil}, "usage": map[string]int{"output_tokens": 10}})
	send("message_stop", map[string]any{})
}

// refused answers as the prompt's line `refuse` says, if it has one.
func refused(w http.ResponseWriter, prompt string) bool {
	for line := range strings.Lines(prompt) {
		rest, isIt := strings.CutPrefix(strings.TrimSpace(line), "refuse: ")
		if !isIt {
			continue
		}
		words, message, _ := strings.Cut(rest, " - ")
		fields := strings.Fields(words)
		for _, header := range fields[2:] {
			name, value, _ := strings.Cut(header, "=")
			w.Header().Set(name, value)
		}
		status, _ := strconv.Atoi(fields[0])
		refuse(w, status, fields[1], message)
		return true
	}
	return false
}

func refuse(w http.ResponseWriter, status int, kind, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"type": "error", "error": map[string]string{"type": kind, "message": text}})
}

// conversation finds the last prompt, how many of its tool calls are done, and
// the text that the last of them returned.
func conversation(messages []message) (prompt string, done int, last string) {
	for _, message := range messages {
		if message.Role != "user" {
			continue
		}
		var texts []string
		results := 0
		for _, b := range blocks(message.Content) {
			switch {
			case b.Type == "tool_result":
				results++
				last = ""
				for _, c := range blocks(b.Content) {
					last += c.Text
				}
			case b.Type == "text" && !isTheCLIs(b.Text):
				texts = append(texts, b.Text)
			}
		}
		if results > 0 {
			done += results
		} else if len(texts) > 0 {
			prompt, done, last = texts[len(texts)-1], 0, ""
		}
	}
	return prompt, done, last
}

// isTheCLIs says whether a text beside the prompt is the CLI's own: a reminder, or
// the file that it has made of a picture.
func isTheCLIs(text string) bool {
	return strings.HasPrefix(text, "<system-reminder>") || strings.HasPrefix(text, "[Image: source: ")
}

// next decides the model's turn: the call of the first step that is not done,
// or the closing text.
func next(prompt string, done int, last string) (answer block, pause time.Duration) {
	say := last
	if done == 0 {
		say = prompt
	}
	for line := range strings.Lines(prompt) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		rest = strings.TrimSpace(rest)
		name, input := "", any(nil)
		switch word {
		case "bash":
			name, input = "Bash", map[string]any{"command": rest, "description": "scripted"}
		case "background":
			name, input = "Bash", map[string]any{"command": rest, "description": "scripted", "run_in_background": true}
		case "open":
			name, input = "mcp__playwright__browser_navigate", map[string]any{"url": rest}
		case "screenshot":
			name, input = "mcp__playwright__browser_take_screenshot", map[string]any{"type": "png"}
		case "tool":
			tool, arguments, _ := strings.Cut(rest, " ")
			name, input = tool, json.RawMessage(arguments)
		case "wait":
			if done == 0 {
				pause, _ = time.ParseDuration(rest)
			}
		case "say":
			say = rest
		}
		if name == "" {
			continue
		}
		if done > 0 {
			done--
			continue
		}
		data, err := json.Marshal(input)
		if err != nil {
			return block{Type: "text", Text: "the script's arguments are no JSON: " + err.Error()}, 0
		}
		return block{Type: "tool_use", ID: fmt.Sprintf("toolu_%d", time.Now().UnixNano()), Name: name, Input: data}, pause
	}
	return block{Type: "text", Text: say}, pause
}

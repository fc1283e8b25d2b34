package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
)

// answer is what POST /command answers.
type answer struct {
	Status     string `json:"status"`
	Result     string `json:"result"`
	SessionID  string `json:"session_id"`
	DurationMS int    `json:"duration_ms"`
	MCPServers []struct {
		Name, Status string
	} `json:"mcp_servers"`
	Warnings []string `json:"warnings"`
	Files    []struct {
		Name string
		Size int
	} `json:"files"`
	Error struct {
		Code, Message string
		RetryAt       string `json:"retry_at"`
	} `json:"error"`
}

// post sends a command and returns its answer and the body as it came.
func (v *vm) post(ctx context.Context, command, session string, header ...string) (a answer, body string, err error) {
	return v.send(ctx, map[string]any{"command": command}, session, header...)
}

// send sends a command's fields, and the session if there is one.
func (v *vm) send(ctx context.Context, fields map[string]any, session string, header ...string) (a answer, body string, err error) {
	if session != "" {
		fields["session_id"] = session
	}
	data, _ := json.Marshal(fields)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, v.url+"/command", bytes.NewReader(data))
	if err != nil {
		return a, "", err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+v.token)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return a, "", err
	}
	defer response.Body.Close()
	data, err = io.ReadAll(response.Body)
	if err == nil && len(header) == 0 {
		err = json.Unmarshal(data, &a)
	}
	return a, string(data), err
}

// ask sends a command, wants the status, and looks for what is left.
func (v *vm) ask(status, command string) answer {
	v.t.Helper()
	return v.askIn(status, command, "")
}

func (v *vm) askIn(status, command, session string) answer {
	v.t.Helper()
	a, body, err := v.post(context.Background(), command, session)
	if err != nil {
		v.t.Fatalf("%v; the server's log:\n%s", err, v.log)
	}
	if a.Status != status {
		v.t.Errorf("%.200s: status %q, want %q: %.2000s", command, a.Status, status, body)
	}
	v.nothingLeft()
	return a
}

// bash runs a line by the agent's Bash tool and returns what it printed.
func (v *vm) bash(status, line string) string {
	v.t.Helper()
	return v.ask(status, "bash: "+line).Result
}

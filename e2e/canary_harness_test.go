package main

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// alone has the folders and the model of a vm, but no server: what the CLI says
// there, it says by itself.
func alone(t *testing.T) (*vm, *asked) {
	t.Helper()
	need(t, "../node_modules/.bin/claude", "make setup installs it")
	v := &vm{t: t, model: &model{}, dir: newDir(t), log: &buffer{}}
	v.workspace = v.dir + "/workspace"
	v.mark = "E2E_MARK=" + strconv.FormatInt(time.Now().UnixNano(), 36)

	seen := &asked{}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.note(r)
		v.model.ServeHTTP(w, r)
	}))
	t.Cleanup(api.Close)
	v.modelURL = api.URL
	return v, seen
}

// asked is what the API was asked for, as it came.
type asked struct {
	mu       sync.Mutex
	requests map[string]http.Header // by method and path, the last
}

func (a *asked) note(r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.requests == nil {
		a.requests = map[string]http.Header{}
	}
	a.requests[r.Method+" "+r.URL.Path] = r.Header.Clone()
}

// routes are the methods and paths that were asked for.
func (a *asked) routes() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Keys(a.requests))
}

func (a *asked) header(route string) http.Header {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests[route]
}

// line is what the server reads of a line of the CLI's.
type line struct {
	Type      string   `json:"type"`
	Subtype   string   `json:"subtype"`
	Error     string   `json:"error"`
	Result    string   `json:"result"`
	Errors    []string `json:"errors"`
	Attempt   int      `json:"attempt"`
	Message   message  `json:"message"`
	Parent    string   `json:"parent_tool_use_id"`
	SessionID string   `json:"session_id"`
	Version   string   `json:"claude_code_version"`
	Servers   []server `json:"mcp_servers"`
	IsError   bool     `json:"is_error"`
	APIStatus int      `json:"api_error_status"`
	NumTurns  int      `json:"num_turns"`
	CostUSD   float64  `json:"total_cost_usd"`
	Limit     limit    `json:"rate_limit_info"`
	TaskID    string   `json:"task_id"`
	ToolUseID string   `json:"tool_use_id"`
	Tools     []string `json:"tools"` // which it does not read, but takes some away
}

type server struct {
	Name, Status string
}

type limit struct {
	Status   string  `json:"status"`
	Kind     string  `json:"rateLimitType"`
	ResetsAt float64 `json:"resetsAt"`
}

// says is a line's text, if it is the agent's own and no subagent's.
func (l line) says() string {
	if l.Type != "assistant" || l.Parent != "" {
		return ""
	}
	var text string
	for _, b := range blocks(l.Message.Content) {
		text += b.Text
	}
	return text
}

func (l line) isInit() bool   { return l.Type == "system" && l.Subtype == "init" }
func (l line) isResult() bool { return l.Type == "result" }
func (l line) isRetry() bool  { return l.Type == "system" && l.Subtype == "api_retry" }

// cli is a Claude Code, as the server starts it.
type cli struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *buffer
	log   *buffer
	ended chan struct{}
}

// wait starts a CLI that waits for its prompt. What is env has a = and no dash.
func (v *vm) wait(t *testing.T, options ...string) *cli {
	t.Helper()
	args := []string{"--input-format", "stream-json", "--output-format", "stream-json", "--verbose"}
	env := []string{v.mark}
	for _, option := range options {
		if name, _, isSet := strings.Cut(option, "="); isSet && name == strings.ToUpper(name) {
			env = append(env, option)
		} else {
			args = append(args, option)
		}
	}
	c := &cli{t: t, cmd: v.claude("", args...), out: &buffer{}, log: &buffer{}}
	c.ended = make(chan struct{})
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = nil, c.out, c.log
	c.cmd.Env = append(c.cmd.Env, env...)
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.cmd.Wait()
		close(c.ended)
	}()
	t.Cleanup(func() {
		c.cmd.Process.Kill()
		v.killAll(func() []string { return markedProcesses(v.mark, -1) })
		<-c.ended
	})
	return c
}

// give gives it its prompt, a text or blocks, and no more.
func (c *cli) give(content any) {
	c.t.Helper()
	prompt := map[string]any{"role": "user", "content": content}
	err := json.NewEncoder(c.stdin).Encode(map[string]any{"type": "user", "message": prompt})
	if err == nil {
		err = c.stdin.Close()
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// begin starts a CLI with a prompt.
func (v *vm) begin(t *testing.T, content any, options ...string) *cli {
	t.Helper()
	c := v.wait(t, options...)
	c.give(content)
	return c
}

// run starts a CLI with a prompt, waits for its end, and returns its lines.
func (v *vm) run(t *testing.T, content any, options ...string) []line {
	t.Helper()
	return v.begin(t, content, options...).end(0)
}

// lines are the whole lines that it has printed so far; each has to be one of JSON.
func (c *cli) lines() (list []line) {
	c.t.Helper()
	for text := range strings.Lines(c.out.String()) {
		if !strings.HasSuffix(text, "\n") {
			break
		}
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil || l.Type == "" {
			c.t.Fatalf("a line is no message (%v): %s", err, text)
		}
		list = append(list, l)
	}
	return list
}

func (c *cli) count(is func(line) bool) (n int) {
	c.t.Helper()
	for _, l := range c.lines() {
		if is(l) {
			n++
		}
	}
	return n
}

func (c *cli) eventually(what string, condition func() bool) {
	c.t.Helper()
	eventually(c.t, what, condition, func() string {
		return "the CLI printed:\n" + c.out.String() + c.log.String()
	})
}

func (c *cli) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// interrupt is the first step of the server's stop ladder.
func (c *cli) interrupt() { c.cmd.Process.Signal(syscall.SIGINT) }

// end waits for its end, wants that exit status, and returns its lines.
func (c *cli) end(status int) []line {
	c.t.Helper()
	c.eventually("the CLI ends", c.hasEnded)
	if got := c.cmd.ProcessState.ExitCode(); got != status {
		c.t.Errorf("it ended with %v, want %d; it printed:\n%s%s",
			c.cmd.ProcessState, status, c.out, c.log)
	}
	return c.lines()
}

// only returns the one line of that kind; there must be one.
func only(t *testing.T, list []line, what string, is func(line) bool) line {
	t.Helper()
	var found []line
	for _, l := range list {
		if is(l) {
			found = append(found, l)
		}
	}
	if len(found) != 1 {
		t.Fatalf("there are %d lines of %s: %+v", len(found), what, list)
	}
	return found[0]
}

// put writes a file of the workspace.
func (v *vm) put(t *testing.T, name, text string) {
	t.Helper()
	path := v.workspace + "/" + name
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// entries are the names in a folder.
func entries(t *testing.T, path string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range list {
		names = append(names, entry.Name())
	}
	return names
}

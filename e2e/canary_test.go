package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What the server leans on of Claude Code, held with the real one alone: no vm-server
// runs here. A fact that no longer holds after a bump of its version names what has
// to be looked at in the server (make bump).
func TestCanary(t *testing.T) {
	facts := []struct {
		holds func(*testing.T, *vm, *asked)
		fact  string
	}{
		{initTells, "init tells session, version, MCP servers and tools before all else"},
		{toolsCanGo, "settings take the tools for later away"},
		{resultTells, "the result is the last line and has the fields that the server reads"},
		{costIsTheTotal, "a conversation goes on by --resume, and the cost is its total"},
		{sessionIsUnknown, "--resume of an unknown id is told as an error and asks nothing"},
		{bashIsInterrupted, "SIGINT ends Bash and the CLI with 0, and --resume goes on"},
		{streamIsInterrupted, "SIGINT ends a request and the CLI with 0, and --resume goes on"},
		{shellDelaysTheEnd, "a background shell delays the end, not the result, then comes a turn"},
		{shellIsInterrupted, "SIGINT ends a CLI that waits for a background shell"},
		{subagentHoldsTheResult, "a background subagent holds the result back"},
		{waitingIsSilent, "a waiting CLI says what its hooks say, no more, and asks nothing"},
		{imageArrives, "a small image arrives byte for byte, by its true type, before the text"},
		{commandsOfTheTerminalAreRefused, "commands that need a terminal are refused as a success, and text with a space before them"},
		{tasksAreTold, "a command that takes too long becomes a task, told by the id of its call, and so is its end"},
		{keyIsRetried, "a refused key is retried, with three numbered lines within seconds"},
		{refusedKeyIsTold, "refused and missing credentials are one error, told apart by status"},
		{limitIsTold, "a plan's limit and an empty balance are told by error and limit"},
		{overloadIsTold, "too many requests and an overload are told by status"},
		{filesAreKept, "it writes into HOME and TMPDIR alone, the conversation under .claude"},
		{oldConversationsGo, "its housekeeping deletes conversations over 30 days old, settings keep them"},
		{keyIsSent, "a key is sent as x-api-key, beside a bearer too; messages alone are asked for"},
		{tokenIsSent, "a token is sent as bearer, a gateway's before a subscription's"},
	}
	for _, f := range facts {
		t.Run(f.fact, func(t *testing.T) {
			t.Parallel()
			v, seen := alone(t)
			f.holds(t, v, seen)
		})
	}
}

// The tools for later are those that image/managed-settings.json takes away.
var later = []string{"CronCreate", "CronDelete", "CronList", "Monitor", "ScheduleWakeup"}

func initTells(t *testing.T, v *vm, _ *asked) {
	list := v.run(t, "hello", "--mcp-config", root(t)+"/.mcp.json", "--strict-mcp-config")
	init := only(t, list, "init", line.isInit)
	if !list[0].isInit() || init.SessionID == "" {
		t.Errorf("the first line is %+v", list[0])
	}
	if diff := cmp.Diff(pinned(t), init.Version); diff != "" {
		t.Errorf("its version (-package.json +got), make setup installs it:\n%s", diff)
	}
	if diff := cmp.Diff([]server{{"playwright", "connected"}}, init.Servers); diff != "" {
		t.Errorf("MCP servers (-want +got):\n%s", diff)
	}
	needed := []string{"Bash", "Read", "Task", "mcp__playwright__browser_take_screenshot"}
	lacking := slices.DeleteFunc(append(needed, later...), func(name string) bool {
		return slices.Contains(init.Tools, name)
	})
	if len(lacking) > 0 {
		t.Errorf("it has no %v among its tools %v", lacking, init.Tools)
	}
}

// pinned is the version in package.json.
func pinned(t *testing.T) string {
	t.Helper()
	var project struct{ Dependencies map[string]string }
	data, err := os.ReadFile(root(t) + "/package.json")
	if err == nil {
		err = json.Unmarshal(data, &project)
	}
	if err != nil {
		t.Fatal(err)
	}
	return project.Dependencies["@anthropic-ai/claude-code"]
}

func toolsCanGo(t *testing.T, v *vm, _ *asked) {
	list := v.run(t, "hello", "--settings", root(t)+"/image/managed-settings.json")
	tools := only(t, list, "init", line.isInit).Tools
	isLater := func(name string) bool { return slices.Contains(later, name) }
	if slices.ContainsFunc(tools, isLater) || !slices.Contains(tools, "Bash") {
		t.Errorf("its tools are %v", tools)
	}
}

func commandsOfTheTerminalAreRefused(t *testing.T, v *vm, _ *asked) {
	for _, name := range []string{"login", "logout", "status", "help", "export", "stop", "plan", "memory", "tasks", "update"} {
		refused := only(t, v.run(t, "/"+name+" x"), "result", line.isResult)
		if refused.IsError || refused.NumTurns != 0 || !strings.Contains(refused.Result, "isn't available") {
			t.Errorf("/%s: %+v", name, refused)
		}
	}
	if text := only(t, v.run(t, " /login x"), "result", line.isResult); strings.TrimSpace(text.Result) != "/login x" {
		t.Errorf("with a space before it: %+v", text)
	}
}

func tasksAreTold(t *testing.T, v *vm, _ *asked) {
	c := v.begin(t, "bash: node -e 'setTimeout(() => {}, 3000)'\nsay: begun", "BASH_DEFAULT_TIMEOUT_MS=1000", "BASH_MAX_TIMEOUT_MS=1000")
	list := c.end(0)
	var call, task string
	ended := false
	for _, l := range list {
		for _, b := range blocks(l.Message.Content) {
			if b.Type == "tool_use" {
				call = b.ID
			}
		}
		switch {
		case l.Subtype == "task_started" && call != "" && l.ToolUseID == call:
			task = l.TaskID
		case l.Subtype == "task_notification" && l.TaskID == task:
			ended = true
		}
	}
	if task == "" || !ended || c.count(line.isResult) != 2 {
		t.Errorf("the call is %q, its task %q, which ended: %v: %s", call, task, ended, c.out)
	}
}

func resultTells(t *testing.T, v *vm, _ *asked) {
	c := v.begin(t, "bash: echo from Bash")
	list := c.end(0)
	last := list[len(list)-1]
	var fields map[string]any
	printed := strings.Split(strings.TrimSpace(c.out.String()), "\n")
	if err := json.Unmarshal([]byte(printed[len(printed)-1]), &fields); err != nil {
		t.Fatal(err)
	}
	got := map[string]any{}
	for _, name := range []string{"type", "subtype", "is_error", "result", "num_turns"} {
		got[name] = fields[name]
	}
	want := map[string]any{
		"type": "result", "subtype": "success", "is_error": false, "result": "from Bash",
		"num_turns": 2.0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	if last.CostUSD <= 0 || last.SessionID != list[0].SessionID || last.APIStatus != 0 {
		t.Errorf("%+v", last)
	}
	if n := c.count(func(l line) bool { return l.says() == "from Bash" }); n != 1 {
		t.Errorf("the answer is in %d lines of the agent's: %+v", n, list)
	}
}

func costIsTheTotal(t *testing.T, v *vm, _ *asked) {
	first := only(t, v.run(t, "said first"), "result", line.isResult)
	again := only(t, v.run(t, "recall", "--resume", first.SessionID), "result", line.isResult)
	if again.Result != "said first" || again.SessionID != first.SessionID {
		t.Errorf("first %+v\nthen %+v", first, again)
	}
	if first.CostUSD <= 0 || math.Abs(again.CostUSD-2*first.CostUSD) > 1e-9 {
		t.Errorf("first %v, then %v in all", first.CostUSD, again.CostUSD)
	}
}

func sessionIsUnknown(t *testing.T, v *vm, seen *asked) {
	list := v.begin(t, "hello", "--resume", "11111111-2222-4333-8444-555555555555").end(1)
	got := only(t, list, "result", line.isResult)
	if !got.IsError || len(got.Errors) == 0 ||
		!strings.HasPrefix(got.Errors[0], "No conversation found") {
		t.Errorf("%+v", got)
	}
	if routes := seen.routes(); len(routes) > 0 {
		t.Errorf("it asked for %v", routes)
	}
}

func bashIsInterrupted(t *testing.T, v *vm, _ *asked) {
	c := v.begin(t, "bash: touch begun; tail -f /dev/null")
	c.eventually("Bash runs", func() bool { return v.has("begun") })
	v.goesOn(t, c)
}

func streamIsInterrupted(t *testing.T, v *vm, _ *asked) {
	c := v.begin(t, "wait: 10m")
	c.eventually("the model is asked", func() bool { return len(v.model.Calls()) > 0 })
	v.goesOn(t, c)
	isCanceled := func() bool { return v.model.Calls()[0].Canceled }
	c.eventually("the request is canceled", isCanceled)
}

// goesOn interrupts a CLI that is busy and goes on in its conversation. A result need
// not come: on a busy machine one in some was missing (measured).
func (v *vm) goesOn(t *testing.T, c *cli) {
	t.Helper()
	c.interrupt()
	stopped := c.end(0)
	session := only(t, stopped, "init", line.isInit).SessionID
	for _, l := range stopped {
		if l.isResult() && l.SessionID != session {
			t.Errorf("the result of the conversation %s is %+v", session, l)
		}
	}

	list := v.run(t, "hello again", "--resume", session)
	again := only(t, list, "result", line.isResult)
	if again.IsError || again.Result != "hello again" || again.SessionID != session {
		t.Errorf("after the interruption: %+v", again)
	}
}

func (v *vm) has(name string) bool {
	_, err := os.Stat(v.workspace + "/" + name)
	return err == nil
}

const untilTold = "until test -e told; do sleep 0.1; done"

func shellDelaysTheEnd(t *testing.T, v *vm, _ *asked) {
	c := v.begin(t, "background: "+untilTold+"\nsay: begun")
	c.eventually("there is a result", func() bool { return c.count(line.isResult) == 1 })
	if c.hasEnded() {
		t.Error("it ended before its shell")
	}
	v.put(t, "told", "")
	c.end(0)
	if inits, results := c.count(line.isInit), c.count(line.isResult); inits != 2 || results != 2 {
		t.Errorf("%d turns began, %d results came: %s", inits, results, c.out)
	}
}

func shellIsInterrupted(t *testing.T, v *vm, _ *asked) {
	c := v.begin(t, "background: "+untilTold+"\nsay: begun")
	c.eventually("there is a result", func() bool { return c.count(line.isResult) == 1 })
	c.interrupt()
	result := only(t, c.end(0), "result", line.isResult)
	if result.IsError || result.Result != "begun" {
		t.Errorf("%+v", result)
	}
}

// The agent has said its last word, and no result has come: the server must not take
// its silence for an end.
func subagentHoldsTheResult(t *testing.T, v *vm, _ *asked) {
	task, err := json.Marshal(map[string]any{
		"description": "scripted", "subagent_type": "general-purpose", "run_in_background": true,
		"prompt": "bash: touch begun; " + untilTold + "\nsay: of the subagent",
	})
	if err != nil {
		t.Fatal(err)
	}
	c := v.begin(t, "tool: Task "+string(task)+"\nsay: begun")
	hasSaid := func(l line) bool { return l.says() == "begun" }
	c.eventually("both have begun", func() bool { return v.has("begun") && c.count(hasSaid) == 1 })
	if c.count(line.isResult) > 0 {
		t.Errorf("there is a result: %s", c.out)
	}
	v.put(t, "told", "")

	list := c.end(0)
	last := list[len(list)-1]
	if !last.isResult() || last.IsError || last.Result != "begun" {
		t.Errorf("the last line is %+v", last)
	}
	isOfTheSubagent := func(l line) bool { return l.Type == "assistant" && l.Parent != "" }
	if c.count(isOfTheSubagent) == 0 {
		t.Errorf("no line has parent_tool_use_id: %s", c.out)
	}
}

func waitingIsSilent(t *testing.T, v *vm, seen *asked) {
	hooks := `{"hooks":{"SessionStart":[{"hooks":[{"type":"command","command":"echo hooked"}]}]}}`
	v.put(t, "settings.json", hooks)
	c := v.wait(t, "--settings", v.workspace+"/settings.json")
	isHook := func(l line) bool {
		return l.Type == "system" && strings.HasPrefix(l.Subtype, "hook_")
	}
	isHooksEnd := func(l line) bool { return isHook(l) && l.Subtype == "hook_response" }
	c.eventually("the hook has spoken", func() bool { return c.count(isHooksEnd) > 0 })

	early := len(c.lines())
	if n := c.count(isHook); n != early {
		t.Errorf("of %d lines before the prompt, %d are a hook's: %s", early, n, c.out)
	}
	if routes := seen.routes(); len(routes) > 0 {
		t.Errorf("it asked for %v before it had a prompt", routes)
	}
	c.give("hello")
	list := c.end(0)
	if got := only(t, list, "result", line.isResult); got.Result != "hello" {
		t.Errorf("%+v", got)
	}
	if n := c.count(isHook); n != early {
		t.Errorf("the hooks spoke again: %s", c.out)
	}
}

func imageArrives(t *testing.T, v *vm, _ *asked) {
	small := picture(t, 8)
	v.run(t, []any{
		map[string]any{"type": "image", "source": map[string]string{
			"type": "base64", "media_type": "image/jpeg",
			"data": base64.StdEncoding.EncodeToString(small),
		}},
		map[string]string{"type": "text", "text": "what is this"},
	})
	kinds, data := v.shown("what is this")
	if diff := cmp.Diff([]string{"image/png", "what is this"}, kinds); diff != "" {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([][]byte{small}, data); diff != "" {
		t.Errorf("pictures (-want +got):\n%s", diff)
	}
}

// It would try for three minutes; the server stops it at the third.
func keyIsRetried(t *testing.T, v *vm, _ *asked) {
	c := v.begin(t, "hello", "ANTHROPIC_API_KEY=wrong-key")
	c.eventually("it retries", func() bool { return c.count(line.isRetry) >= 3 })
	c.interrupt()
	var got []string
	for _, l := range c.end(0) {
		if l.isRetry() {
			got = append(got, fmt.Sprint(l.Attempt, l.Error))
		}
	}
	want := []string{"1authentication_failed", "2authentication_failed", "3authentication_failed"}
	if diff := cmp.Diff(want, got[:3]); diff != "" {
		t.Errorf("retries (-want +got):\n%s", diff)
	}
}

// refusal is what the server reads of one: of errors it knows three by name.
type refusal struct {
	Error  string
	Status int
	Limit  limit
}

func refusedKeyIsTold(t *testing.T, v *vm, _ *asked) {
	v.isTold(t, refusal{"authentication_failed", 401, limit{}},
		"refuse: 401 authentication_error - no")
	v.isTold(t, refusal{"authentication_failed", 0, limit{}},
		"hello", "ANTHROPIC_API_KEY=")
}

func limitIsTold(t *testing.T, v *vm, _ *asked) {
	const reset = 4000000000
	unified := fmt.Sprintf("anthropic-ratelimit-unified-status=rejected "+
		"anthropic-ratelimit-unified-reset=%d "+
		"anthropic-ratelimit-unified-representative-claim=five_hour", reset)
	v.isTold(t, refusal{"rate_limit", 429, limit{"rejected", "five_hour", reset}},
		"refuse: 429 rate_limit_error "+unified+" - limited",
		"ANTHROPIC_API_KEY=", "CLAUDE_CODE_OAUTH_TOKEN=dummy-token")
	v.isTold(t, refusal{"billing_error", 400, limit{}}, "refuse: 400 invalid_request_error - "+
		"Your credit balance is too low to access the Anthropic API.")
}

func overloadIsTold(t *testing.T, v *vm, _ *asked) {
	v.isTold(t, refusal{"rate_limit", 429, limit{}}, "refuse: 429 rate_limit_error - later")
	v.isTold(t, refusal{"another", 529, limit{}}, "refuse: 529 overloaded_error - later")
}

// isTold wants a prompt to be refused.
func (v *vm) isTold(t *testing.T, want refusal, prompt string, env ...string) {
	t.Helper()
	// Once more only, or it would try for three minutes.
	list := v.begin(t, prompt, append(env, "CLAUDE_CODE_MAX_RETRIES=1")...).end(1)
	result := only(t, list, "result", line.isResult)
	if !result.IsError || result.Result == "" {
		t.Errorf("%s: %+v", prompt, result)
	}

	got := refusal{Status: result.APIStatus}
	for _, l := range list {
		if l.Type == "assistant" {
			got.Error = l.Error
		}
		// Without either it is no plan's limit.
		if l.Type == "rate_limit_event" && (l.Limit.Kind != "" || l.Limit.ResetsAt > 0) {
			got.Limit = l.Limit
		}
	}
	named := []string{"authentication_failed", "rate_limit", "billing_error"}
	if !slices.Contains(named, got.Error) {
		got.Error = "another"
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", prompt, diff)
	}
}

func filesAreKept(t *testing.T, v *vm, _ *asked) {
	result := only(t, v.run(t, "hello"), "result", line.isResult)
	got := map[string][]string{}
	for _, name := range []string{"home", "tmp", "workspace"} {
		got[name] = entries(t, v.dir+"/"+name)
	}
	want := map[string][]string{
		"home":      {".claude", ".claude.json"},
		"tmp":       {"cc-socks", fmt.Sprintf("claude-%d", os.Getuid())},
		"workspace": nil,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	conversation := v.dir + "/home/.claude/projects/*/" + result.SessionID + ".jsonl"
	if found, _ := filepath.Glob(conversation); len(found) != 1 {
		t.Errorf("the conversation is in %v, not in %s", found, conversation)
	}
}

const messages = "POST /v1/messages"

// login is what a request has of credentials.
type login struct {
	Key, Authorization string
	IsSubscription     bool // by the beta that the API wants with such a token
}

func keyIsSent(t *testing.T, v *vm, seen *asked) {
	v.sends(t, seen, login{Key: "a-key"}, "ANTHROPIC_API_KEY=a-key")
	v.sends(t, seen, login{Key: "a-key", Authorization: "Bearer a-token"},
		"ANTHROPIC_API_KEY=a-key", "ANTHROPIC_AUTH_TOKEN=a-token")

	// The proxy does not let the second through, and the CLI does well without it.
	others := slices.DeleteFunc(seen.routes(), func(route string) bool {
		return route == messages || route == "HEAD /api/hello"
	})
	if len(others) > 0 {
		t.Errorf("it asks for %v too", others)
	}
}

func tokenIsSent(t *testing.T, v *vm, seen *asked) {
	const none = "ANTHROPIC_API_KEY="
	v.sends(t, seen, login{"", "Bearer a-plans", true},
		none, "CLAUDE_CODE_OAUTH_TOKEN=a-plans")
	v.sends(t, seen, login{Authorization: "Bearer a-gateways"},
		none, "CLAUDE_CODE_OAUTH_TOKEN=a-plans", "ANTHROPIC_AUTH_TOKEN=a-gateways")
}

// sends wants a prompt to be sent with those credentials.
func (v *vm) sends(t *testing.T, seen *asked, want login, env ...string) {
	t.Helper()
	v.run(t, "hello", env...)
	sent := seen.header(messages)
	got := login{
		Key:            sent.Get("X-Api-Key"),
		Authorization:  sent.Get("Authorization"),
		IsSubscription: strings.Contains(sent.Get("Anthropic-Beta"), "oauth-2025-04-20"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%v (-want +got):\n%s", env, diff)
	}
	if sent.Get("Anthropic-Version") == "" {
		t.Errorf("%v: there is no anthropic-version among %v", env, sent)
	}
}

// Seconds after its start, if that was not done within a day, or ten minutes after it: so
// a waiting CLI does it.
func oldConversationsGo(t *testing.T, v *vm, _ *asked) {
	kept := "--settings=" + root(t) + "/image/managed-settings.json"
	for _, options := range [][]string{{kept}, nil} {
		v.run(t, "said long ago")
		path := v.onlyConversation(t)
		makeOld(t, path)
		os.Remove(v.housekeeping())
		c := v.wait(t, options...)
		c.eventually("its housekeeping has run", func() bool { return exists(v.housekeeping()) })
		c.cmd.Process.Kill()
		<-c.ended
		if want := options != nil; exists(path) != want {
			t.Errorf("with the options %q the conversation is there: %v", options, !want)
		}
		os.Remove(path)
	}
}

// housekeeping is the file by which the CLI notes that its housekeeping has run.
func (v *vm) housekeeping() string { return v.dir + "/home/.claude/.last-cleanup" }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// onlyConversation is the file of the one conversation that is kept.
func (v *vm) onlyConversation(t *testing.T) string {
	t.Helper()
	paths, _ := filepath.Glob(v.dir + "/home/.claude/projects/*/*.jsonl")
	if len(paths) != 1 {
		t.Fatalf("there are the conversations %q, want one", paths)
	}
	return paths[0]
}

// makeOld makes a file 40 days old.
func makeOld(t *testing.T, path string) {
	t.Helper()
	old := time.Now().AddDate(0, 0, -40)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
}

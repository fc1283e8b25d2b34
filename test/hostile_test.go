package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const testSession = "0d5bd9a1-6a0c-4ee8-8b5e-3b8a0c1f2e3d"

// hostileClaude stands in for the CLI where that is too well-behaved: it does
// what the prompt's first word says. The second is a marker for its processes.
func hostileClaude() {
	misbehaveWhileIdle()
	line, _ := bufio.NewReaderSize(os.Stdin, 64<<10).ReadString('\n')
	var input struct{ Message struct{ Content string } }
	json.Unmarshal([]byte(line), &input)
	noteIn("prompts", input.Message.Content)
	behaviour, marker, _ := strings.Cut(input.Message.Content, " ")
	switch behaviour {
	case "says-nothing":
		return
	case "real":
		becomeRealClaude(marker)
	}
	beginTurn()
	switch behaviour {
	case "holds-stdout":
		spawn(marker, false, "sleep")
	case "daemon":
		spawn(marker, true, "daemon")
	case "no-environment":
		spawn(marker, true, "sleep-without-environment")
	case "deep":
		spawn(marker, false, "deep", "100")
	case "wide":
		for range 100 {
			spawn(marker, true, "sleep")
		}
	case "fork-chain":
		spawn(marker, true, "chain")
		time.Sleep(50 * time.Millisecond)
	case "fork-chains-in-c": // as many as the marker says
		if err := exec.Command(os.Getenv("TEST_CHAIN"), marker, "30").Run(); err != nil {
			result(err.Error())
			return
		}
		time.Sleep(50 * time.Millisecond)
	case "leaves-the-dead": // which nobody has reaped
		for range 20 {
			spawn(marker, true, "ended")
		}
		for _, pid := range childPIDs(os.Getpid()) {
			for !strings.HasPrefix(procStatus(pid, "State"), "Z") {
				time.Sleep(time.Millisecond)
			}
		}
	case "stopped-child":
		spawn(marker, true, "stopped")
	case "ignores-signals":
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM)
		spawn(marker, true, "ignoring")
		say("still here")
		time.Sleep(time.Hour)
	case "stops-itself":
		spawn(marker, true, "sleep")
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		time.Sleep(time.Hour)
	case "waits":
		say("waiting") // before its child, by which tests know that it waits
		spawn(marker, true, "sleep")
		time.Sleep(time.Hour)
	case "tells-when-interrupted":
		interrupted := make(chan os.Signal, 1)
		signal.Notify(interrupted, syscall.SIGINT)
		say("half of it")
		<-interrupted
		emit(`{"type":"result","subtype":"error_during_execution","is_error":true,"num_turns":7,` +
			`"total_cost_usd":0.5,"session_id":"` + testSession + `"}`)
		return
	case "answers-well-when-interrupted": // as for a subagent that is at work
		interrupted := make(chan os.Signal, 1)
		signal.Notify(interrupted, syscall.SIGINT)
		say("half of it")
		<-interrupted
		result("all of it")
		return
	case "puts-a-byte-back":
		back, _ := os.OpenFile("/proc/self/fd/0", os.O_WRONLY, 0)
		back.WriteString("x")
		os.Exit(8)
	case "says-markup":
		result("<b>&</b>")
		return
	case "closes-stdout":
		os.Stdout.Close()
		os.Stdout = nil // the child holds none either
		spawn(marker, true, "sleep")
		time.Sleep(time.Hour)
	case "answers-and-closes-stdout":
		result("answered")
		os.Stdout.Close()
		time.Sleep(time.Hour)
	case "dies":
		say("last words")
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour)
	case "exits":
		os.Stderr.WriteString("the reason")
		os.Exit(3)
	case "answers-and-fails":
		result("answered")
		os.Exit(1)
	case "answers-and-dies":
		result("answered")
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour)
	case "answers-twice":
		result("first")
		result("second")
		return
	case "answers-the-same-twice":
		result("the same")
		beginTurn()
		result("the same")
		return
	case "answers-and-fails-in-its-next-turn":
		result("first")
		beginTurn()
		refusedByTheAPI("overloaded", 529, "API Error: 529")
	case "fails-and-answers-in-its-next-turn":
		emit(`{"type":"result","is_error":true,"result":"API Error: 500"}`)
		beginTurn()
		result("second")
		return
	case "answers-blank":
		say("spoken")
		result(" \n")
		return
	case "waits-for-a-command-that-took-too-long": // which the CLI moved to the background
		emit(`{"type":"system","subtype":"task_started","task_id":"b1","tool_use_id":"toolu_1"}`)
		result("it still runs")
		time.Sleep(time.Second) // longer than the exit grace of the tests
		emit(`{"type":"system","subtype":"task_notification","task_id":"b1"}`)
		beginTurn()
		result("it has passed")
		return
	case "starts-a-server": // in the background, of its own wish
		emit(`{"type":"assistant","message":{"content":[{"type":"tool_use","id":"toolu_1","input":{"run_in_background":true}}]}}`)
		emit(`{"type":"system","subtype":"task_started","task_id":"b1","tool_use_id":"toolu_1"}`)
		result("started")
		time.Sleep(time.Hour)
	case "is-restricted":
		emit(`{"type":"system","subtype":"init","session_id":"` + testSession + `","permissionMode":"default",` +
			`"mcp_servers":[{"name":"playwright","status":"failed"}]}`)
		emit(`{"type":"result","result":"I may not","session_id":"` + testSession + `",` +
			`"permission_denials":[{"tool_name":"Bash"},{"tool_name":"Bash"},{"tool_name":"Write"}]}`)
		return
	case "is-too-long":
		emit(`{"type":"result","subtype":"success","is_error":true,"api_error_status":400,` +
			`"terminal_reason":"prompt_too_long","result":"Prompt is too long"}`)
		os.Exit(1)
	case "answers-and-dies-in-its-next-turn":
		result("first")
		beginTurn()
		say("going on")
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour)
	case "dies-amid-garbage":
		os.Stdout.WriteString("not JSON\n")
		os.Exit(8)
	case "takes-another-turn":
		result("first")
		beginTurn()
		time.Sleep(time.Second) // longer than the exit grace of the tests
		result("second")
		return
	case "answers-and-stays":
		spawn(marker, true, "sleep")
		result("answered")
		time.Sleep(time.Hour)
	case "writes-invalid-utf8": // so many lines and a result, each of so many bytes
		var count, size int
		fmt.Sscan(marker, &count, &size)
		text := strings.Repeat("\xffx", size/2)
		for range count {
			say(text)
		}
		emit(`{"type":"result","result":"` + text + `"}`)
		return
	case "is-traced-and-stops", "answers-well-traced-and-stopped":
		spawn(marker, true, "sleep")
		if behaviour == "answers-well-traced-and-stopped" {
			result("answered")
		}
		traceMe()
		syscall.Kill(os.Getpid(), syscall.SIGUSR1)
		time.Sleep(time.Hour)
	case "writes-out":
		os.Mkdir("outbox", 0o755)
		if err := os.WriteFile("outbox/report ü.txt", []byte("0123456789"), 0o644); err != nil {
			panic(err)
		}
	case "boasts-of-everything":
		many := strings.Repeat("e", 20_000)
		emit(`{"type":"system","subtype":"init","session_id":"` + many + `","mcp_servers":[` +
			strings.Repeat(`{"name":"`+many+`","status":"`+many+`"},`, 150) + `{}]}`)
		emit(`{"type":"result","is_error":true,"result":"` + many + `","session_id":"none"}`)
		return
	case "floods":
		out := bufio.NewWriterSize(os.Stdout, 1<<20)
		chunk := []byte(strings.Repeat("x", 1<<20))
		for range 1 << 10 {
			out.Write(chunk)
		}
		out.WriteString("\n")
		out.Flush()
	case "writes-garbage":
		os.Stdout.WriteString("not JSON\n{\"type\":\n\x00\xff\xfe\n[1,2]\n42\nnull\n\n{\"type\":7}\n")
		emit(`{"type":"assistant","message":"of another type"}`)
	case "fills-stderr":
		for range 1 << 12 {
			os.Stderr.WriteString(strings.Repeat("e", 1<<10))
		}
		os.Stderr.WriteString("the end")
		os.Exit(1)
	case "key-refused":
		for i := range 11 {
			emit(fmt.Sprintf(`{"type":"system","subtype":"api_retry","attempt":%d,`+
				`"error_status":401,"error":"authentication_failed"}`, i+1))
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(time.Hour)
	case "gives-up-on-its-key":
		emit(`{"type":"assistant","error":"authentication_failed",` +
			`"message":{"content":[{"type":"text","text":"Invalid API key"}]}}`)
		emit(`{"type":"result","subtype":"success","is_error":true,"api_error_status":401}`)
		os.Exit(1)
	case "not-logged-in":
		emit(`{"type":"assistant","error":"authentication_failed",` +
			`"message":{"content":[{"type":"text","text":"Not logged in"}]}}`)
		emit(`{"type":"result","subtype":"success","is_error":true,"result":"Not logged in"}`)
		os.Exit(1)
	case "asks-the-api", "asks-the-api-in-vain":
		request, _ := http.NewRequest("GET", os.Getenv("ANTHROPIC_BASE_URL")+"/v1/models", nil)
		request.Header.Set("X-Api-Key", os.Getenv("ANTHROPIC_API_KEY"))
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			panic(err)
		}
		if behaviour == "asks-the-api-in-vain" {
			emit(`{"type":"result","is_error":true,"api_error_status":502,"result":"API Error: 502"}`)
			os.Exit(1)
		}
		result(response.Status)
		return
	case "reports-an-error":
		emit(`{"type":"result","subtype":"success","is_error":true,"result":"API Error: 529 overloaded"}`)
		os.Exit(1)
	case "hits-a-limit": // of a plan, until the marker's first word
		marker, _, _ = strings.Cut(marker, " ")
		emit(`{"type":"rate_limit_event","rate_limit_info":{"status":"rejected",` +
			`"rateLimitType":"five_hour","resetsAt":` + marker + `}}`)
		refusedByTheAPI("rate_limit", 429, "You've hit your limit")
	case "has-no-balance":
		refusedByTheAPI("billing_error", 400, "Credit balance is too low")
	case "is-overloaded": // with the marker's first word as the status
		marker, _, _ = strings.Cut(marker, " ")
		status, _ := strconv.Atoi(marker)
		emit(`{"type":"rate_limit_event","rate_limit_info":{"status":"rejected"}}`)
		refusedByTheAPI("rate_limit", status, "API Error")
	case "unknown-session":
		emit(`{"type":"result","subtype":"error_during_execution","is_error":true,` +
			`"errors":["No conversation found with session ID: x"]}`)
		os.Exit(1)
	case "describes-itself":
		directory, _ := os.Getwd()
		group, _ := syscall.Getpgid(0)
		me := identify(os.Getpid())
		data, _ := json.Marshal(selfDescription{os.Args[1:], os.Environ(), directory,
			group == me.pid, os.Getuid(), os.Getgid(), me.pid, me.started})
		result(string(data))
		return
	case "prints": // the marker, as it is
		emit(marker)
		return
	case "answers-with": // so many bytes
		count, _ := strconv.Atoi(marker)
		result(strings.Repeat("x", count))
		return
	case "one-large-line":
		emit(`{"type":"user","message":{"content":"` + strings.Repeat("x", 14<<20) + `"}}`)
	case "forges-an-event":
		emit("{\"type\":\"user\",\r\r\"x\":\"forged\"}")
	case "looks-at-its-parent":
		var seen []string
		for _, name := range []string{"environ", "mem", "fd"} {
			found := "no"
			if file, err := os.Open(fmt.Sprintf("/proc/%d/%s", os.Getppid(), name)); err == nil {
				found = "yes"
				file.Close()
			}
			seen = append(seen, name+": "+found)
		}
		result(strings.Join(seen, ", "))
		return
	case "boasts":
		version := strings.Repeat("9", 1<<20)
		emit(`{"type":"system","subtype":"init","claude_code_version":"` + version + `"}`)
	case "opens-its-terminal":
		if _, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err != nil {
			result(err.Error())
			return
		}
	case "lists-descriptors":
		entries, _ := os.ReadDir("/proc/self/fd")
		var list string
		for _, entry := range entries {
			target, _ := os.Readlink("/proc/self/fd/" + entry.Name())
			list += target + " "
		}
		result(list)
		return
	case "sleeps":
		duration, _ := time.ParseDuration(marker)
		time.Sleep(duration)
	case "waits-to-go": // until a test makes that file
		for _, err := os.Stat("go"); err != nil; _, err = os.Stat("go") {
			time.Sleep(5 * time.Millisecond)
		}
	case "emits", "emits-and-waits":
		count, _ := strconv.Atoi(marker)
		out := bufio.NewWriterSize(os.Stdout, 1<<20)
		line := `{"type":"user","message":{"content":"` + strings.Repeat("x", 1000) + `"}}` + "\n"
		for range count {
			out.WriteString(line)
		}
		out.Flush()
		if behaviour == "emits-and-waits" {
			time.Sleep(time.Hour)
		}
	case "writes-a-file": // one byte for each command that runs
		file, err := os.OpenFile("ran", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			_, err = file.WriteString("x")
		}
		result(fmt.Sprint("writing: ", err))
		return
	case "waits-for-its-child":
		path, _ := os.Executable()
		child := exec.Command(path, "descend", marker, "sleep")
		child.Run()
		result("its child: " + child.ProcessState.String())
		return
	case "runs-out-of-memory":
		syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20})
		say(string(make([]byte, 1<<30)))
	}
	say("a subagent's words are not the agent's") // told apart by their parent
	emit(`{"type":"assistant","parent_tool_use_id":"toolu_1",` +
		`"message":{"content":[{"type":"text","text":"subagent"}]}}`)
	say(behaviour)
	result(behaviour)
}

// misbehaveWhileIdle does, before a prompt is read, what files in the workspace
// say. The first process that finds one with "once" in its name removes it.
func misbehaveWhileIdle() {
	there := func(name string) bool {
		_, err := os.Stat(name)
		return err == nil || os.Remove(name+"-once") == nil
	}
	noteIn("starts", strconv.Itoa(os.Getpid()))
	switch {
	case there("exits-at-start"):
		os.Exit(7)
	case there("ignores-signals-while-idle"):
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	case there("speaks-before-it-is-asked"):
		result("forged")
	case there("runs-a-hook"):
		emit(`{"type":"system","subtype":"hook_started","hook_name":"SessionStart"}`)
		emit(`{"type":"system","subtype":"hook_response","hook_name":"SessionStart"}`)
	case there("never-reads"):
		time.Sleep(time.Hour)
	case there("dies-on-the-prompt-unread"):
		waitForInput()
		os.Exit(8)
	case there("dies-on-half-the-prompt"):
		waitForInput()
		os.Stdin.Read(make([]byte, 100))
		os.Exit(8)
	}
}

// noteIn adds a line to a file, where a test that looks for it has made one.
func noteIn(name, line string) {
	if file, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0); err == nil {
		file.WriteString(line + "\n")
		file.Close()
	}
}

func refusedByTheAPI(kind string, status int, words string) {
	emit(`{"type":"assistant","error":"` + kind + `",` +
		`"message":{"content":[{"type":"text","text":"` + words + `"}]}}`)
	emit(fmt.Sprintf(`{"type":"result","subtype":"success","is_error":true,`+
		`"api_error_status":%d,"result":"%s"}`, status, words))
	os.Exit(1)
}

func emit(line string) { os.Stdout.WriteString(line + "\n") }

// beginTurn is what the CLI says before each turn.
func beginTurn() {
	emit(`{"type":"system","subtype":"init","session_id":"` + testSession + `",` +
		`"mcp_servers":[{"name":"playwright","status":"connected"}]}`)
}

func say(text string) {
	emit(`{"type":"assistant","session_id":"` + testSession + `",` +
		`"message":{"content":[{"type":"text","text":"` + text + `"}]}}`)
}

func result(text string) {
	data, _ := json.Marshal(text)
	emit(`{"is_error":false,"result":` + string(data) + `,"num_turns":2,"total_cost_usd":0.25,` +
		`"session_id":"` + testSession + `","subtype":"success","type":"result"}`)
}

// becomeRealClaude executes the real CLI with the arguments of this one, and
// the prompt as all of its input.
func becomeRealClaude(prompt string) {
	in, out, err := os.Pipe() // it holds 64 kB
	if err == nil {
		message := map[string]string{"role": "user", "content": prompt}
		err = json.NewEncoder(out).Encode(map[string]any{"type": "user", "message": message})
		out.Close()
	}
	if err == nil {
		err = readAsStdin(in)
	}
	if err == nil {
		err = syscall.Exec(os.Getenv("TEST_REAL_CLAUDE"), os.Args, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "cannot become the real CLI:", err)
	os.Exit(9)
}

// spawn starts a descendant, which holds stdout as the CLI's tools do.
func spawn(marker string, session bool, args ...string) {
	path, _ := os.Executable()
	cmd := exec.Command(path, append([]string{"descend", marker}, args...)...)
	if os.Stdout != nil {
		cmd.Stdout = os.Stdout
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: session}
	if args[0] == "sleep-without-environment" {
		cmd.Env = []string{"NOTHING=1"}
	}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot spawn:", err)
		os.Exit(9)
	}
}

// descend is a process below the hostile claude.
func descend(args []string) {
	marker := args[0]
	switch args[1] {
	case "daemon": // double fork, as daemons do
		spawn(marker, true, "sleep")
		return
	case "deep":
		if left, _ := strconv.Atoi(args[2]); left > 0 {
			spawn(marker, left%2 == 0, "deep", strconv.Itoa(left-1))
		}
	case "ended":
		return
	case "stopped":
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case "ignoring":
		signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	case "chain":
		forkChain()
	}
	time.Sleep(time.Hour)
}

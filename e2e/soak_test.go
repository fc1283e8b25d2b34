package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A minute of SOAK is a hundred commands, each with a key of its own, whose clients
// are cut off at random and come again. The scripted model counts: a key is asked of
// it once, however many clients it had, and everyone reads the same answer. SOAK_SEED
// repeats a run's choices.
func TestSoakOfCutConnections(t *testing.T) {
	duration, err := time.ParseDuration(cmp.Or(os.Getenv("SOAK"), "1m"))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("SOAK_SEED"), strconv.FormatInt(time.Now().UnixNano(), 10)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	commands := int(100 * duration.Minutes())
	t.Logf("SOAK=%s SOAK_SEED=%d: %d commands", duration, seed, commands)
	v := start(t, "VM_TOKEN=correct", "VM_WARM=true", "VM_HEARTBEAT=20ms", "VM_MCP_CONFIG=")
	begun := time.Now()

	var all sync.WaitGroup
	results := make([]*cutCommand, commands)
	next := make(chan int)
	for range 6 {
		all.Go(func() {
			for i := range next {
				c := &cutCommand{v: v, key: fmt.Sprintf("key-%d", i), random: rand.New(rand.NewPCG(seed, uint64(i)))}
				c.run()
				results[i] = c
			}
		})
	}
	for i := range commands {
		next <- i
	}
	close(next)
	all.Wait()

	asked := map[string]int{}
	for _, call := range v.model.Calls() {
		if call.Path == "/v1/messages" {
			asked[call.Prompt]++
		}
	}
	var cuts, answers, stops int
	for _, c := range results {
		cuts += c.cuts
		answers += c.answers
		if c.isStopped {
			stops++
		}
		for _, problem := range c.problems {
			t.Errorf("%s: %s", c.key, problem)
		}
		count := asked[c.prompt]
		mayBeUnasked := c.isStopped && count == 0
		if count != 1 && !mayBeUnasked {
			t.Errorf("%s: the model was asked %d times", c.key, count)
		}
	}
	t.Logf("%.0fs: %d commands, %d of them stopped, %d connections cut, %d answers read", time.Since(begun).Seconds(), commands, stops, cuts, answers)
	if cuts < commands || answers < commands {
		t.Error("too little was cut or read to prove anything")
	}
}

// cutCommand is one key's command and its clients.
type cutCommand struct {
	v      *vm
	key    string
	prompt string
	random *rand.Rand

	mu            sync.Mutex
	answer        string // what the first who read it read
	answers, cuts int
	isStopped     bool
	problems      []string
}

// run has one to three clients ask for the key until each has its answer.
func (c *cutCommand) run() {
	c.prompt = c.key
	if c.random.IntN(2) == 0 {
		c.prompt = c.key + fmt.Sprintf("\nwait: %dms", c.random.IntN(400))
	}
	var clients sync.WaitGroup
	for range 1 + c.random.IntN(3) {
		random := rand.New(rand.NewPCG(c.random.Uint64(), 0))
		clients.Go(func() { c.client(random) })
	}
	if c.random.IntN(8) == 0 {
		moment := time.Duration(c.random.IntN(1500)) * time.Millisecond
		clients.Go(func() {
			time.Sleep(moment)
			c.stop()
		})
	}
	clients.Wait()
}

// client sends the request again and again: it is cut off up to four times, and then
// reads to the end.
func (c *cutCommand) client(random *rand.Rand) {
	for range random.IntN(5) {
		patience := time.Duration(random.IntN(700)) * time.Millisecond
		length := -1 // of the request, if not all of it is sent
		if random.IntN(4) == 0 {
			length = random.IntN(300)
		}
		if !c.attempt(random, length, patience) {
			c.mu.Lock()
			c.cuts++
			c.mu.Unlock()
		}
	}
	if !c.attempt(random, -1, 5*time.Minute) {
		c.fail("no answer in 5 minutes")
	}
}

func (c *cutCommand) fail(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// attempt sends the request and reads for a time. It says whether it read an answer.
func (c *cutCommand) attempt(random *rand.Rand, length int, patience time.Duration) bool {
	connection, err := net.Dial("tcp", strings.TrimPrefix(c.v.url, "http://"))
	if err != nil {
		c.fail("%v", err)
		return false
	}
	defer connection.Close()
	isStream := random.IntN(2) == 0
	accept := map[bool]string{true: "text/event-stream", false: "application/json"}[isStream]
	body := fmt.Sprintf(`{"command":%q}`, c.prompt)
	request := fmt.Sprintf("POST /command HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer correct\r\nConnection: close\r\n"+
		"Content-Type: application/json\r\nAccept: %s\r\nIdempotency-Key: %s\r\nContent-Length: %d\r\n\r\n%s", accept, c.key, len(body), body)
	if length >= 0 && length < len(request) {
		io.WriteString(connection, request[:length])
		return false
	}
	io.WriteString(connection, request)
	connection.SetReadDeadline(time.Now().Add(patience))
	response, err := readAll(connection)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		return false
	}
	if err != nil {
		c.fail("%v", err)
		return false
	}
	c.read(isStream, response)
	return true
}

// readAll reads a response, whose body it returns.
func readAll(connection net.Conn) (string, error) {
	var raw bytes.Buffer
	if _, err := raw.ReadFrom(connection); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(&raw), nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", response.StatusCode, body)
	}
	return string(body), err
}

// read compares an answer with that of the others.
func (c *cutCommand) read(isStream bool, body string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer := strings.TrimSpace(body)
	if isStream {
		_, answer, _ = strings.Cut("\n"+body, "\nevent: response\ndata: ")
		answer = strings.TrimSpace(answer)
	}
	c.answers++
	if c.answer == "" {
		c.answer = answer
	}
	if answer == "" || answer != c.answer {
		c.problems = append(c.problems, fmt.Sprintf("one read %q, another %q", c.answer, answer))
	}
	isGood := strings.HasPrefix(answer, `{"status":"success"`) || c.isStopped && strings.Contains(answer, `"code":"stopped"`)
	if !isGood {
		c.problems = append(c.problems, "the answer is "+answer)
	}
}

// stop asks for the command's end, which comes if it waits or runs.
func (c *cutCommand) stop() {
	c.mu.Lock()
	c.isStopped = true
	c.mu.Unlock()
	request, _ := http.NewRequest("DELETE", c.v.url+"/command", nil)
	request.Header.Set("Authorization", "Bearer correct")
	request.Header.Set("Idempotency-Key", c.key)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		c.fail("%v", err)
		return
	}
	response.Body.Close()
	if response.StatusCode != http.StatusAccepted && response.StatusCode != http.StatusNotFound {
		c.fail("the stop is answered %s", response.Status)
	}
}

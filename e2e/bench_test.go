package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// bare runs the CLI as a shell loop would, for text, and returns its conversation.
func (v *vm) bare(session string) string {
	v.t.Helper()
	return v.cli(session, "hello", "--output-format", "json")
}

// streaming runs it just as vm-server does: for messages as they come.
func (v *vm) streaming(session string) string {
	v.t.Helper()
	prompt := `{"type":"user","message":{"role":"user","content":"hello"}}` + "\n"
	return v.cli(session, prompt, "--input-format", "stream-json", "--output-format", "stream-json", "--verbose")
}

func (v *vm) cli(session, input string, args ...string) string {
	v.t.Helper()
	args = append(args, "--mcp-config", root(v.t)+"/.mcp.json", "--strict-mcp-config")
	if session != "" {
		args = append(args, "--resume", session)
	}
	output, err := v.claude(input, args...).Output()
	lines := bytes.Split(bytes.TrimSpace(output), []byte("\n"))
	var a answer
	if json.Unmarshal(lines[len(lines)-1], &a); err != nil || a.Result != "hello" {
		v.t.Fatalf("%v: %s", err, output)
	}
	return a.SessionID
}

func (v *vm) hello(session string) string {
	v.t.Helper()
	a, body, err := v.post(context.Background(), "hello", session)
	if err != nil || a.Result != "hello" {
		v.t.Fatalf("%v: %s", err, body)
	}
	return a.SessionID
}

// BenchmarkAnswers compares the ways to an answer, in turns, as the speed of a
// shared machine drifts, and prints the table of docs/operating.md.
func BenchmarkAnswers(b *testing.B) {
	warmNew, warmOn, cold := startWarm(b), startWarm(b), start(b)
	ways := []struct {
		name string
		ask  [2]func(session string) string // in a new conversation, and in one that goes on
	}{
		{"`claude -p` alone, streaming as vm-server has it", [2]func(string) string{cold.streaming, cold.streaming}},
		{"`claude -p` alone, for text", [2]func(string) string{cold.bare, cold.bare}},
		{"vm-server, `VM_WARM=false`", [2]func(string) string{cold.hello, cold.hello}},
		{"vm-server", [2]func(string) string{warmNew.hello, warmOn.hello}},
	}
	var took [4][2][]time.Duration
	var sessions [4]string
	for i, way := range ways { // the first run of a home takes longer, and a conversation is to go on
		way.ask[0]("")
		sessions[i] = way.ask[1]("")
		way.ask[1](sessions[i])
	}
	for round := 0; b.Loop(); round++ {
		for turn := range ways {
			i := (round + turn) % len(ways)
			for j, session := range []string{"", sessions[i]} {
				time.Sleep(3 * time.Second) // what people take to write; a spare is ready then
				begin := time.Now()
				ways[i].ask[j](session)
				took[i][j] = append(took[i][j], time.Since(begin))
			}
		}
	}
	median := func(i, j int) time.Duration {
		slices.Sort(took[i][j])
		return took[i][j][len(took[i][j])/2]
	}
	var table strings.Builder
	table.WriteString("\n| median | new conversation | | continued | |\n|---|---|---|---|---|\n")
	for i, way := range ways {
		fmt.Fprintf(&table, "| %s |", way.name)
		for j := range 2 {
			fmt.Fprintf(&table, " %.2f s | %.2f |", median(i, j).Seconds(), median(i, j).Seconds()/median(0, j).Seconds())
		}
		table.WriteString("\n")
	}
	b.Log(table.String())
	b.ReportMetric(median(2, 0).Seconds()/median(0, 0).Seconds(), "cold/streaming")
	b.ReportMetric(median(3, 0).Seconds()/median(0, 0).Seconds(), "warm/streaming")
	b.ReportMetric(median(3, 0).Seconds()/median(1, 0).Seconds(), "warm/text")
}

// BenchmarkWaiting is what a waiting server and its spare hold and use in a minute.
func BenchmarkWaiting(b *testing.B) {
	v := startWarm(b)
	v.hello("")
	v.spare("")
	time.Sleep(5 * time.Second) // the start-up is not waiting
	tree := []string{strconv.Itoa(v.cmd.Process.Pid)}
	for _, line := range v.left() {
		pid, _, _ := strings.Cut(line, " ")
		tree = append(tree, pid)
	}
	cpu := func(pids []string) (ticks int) {
		for _, pid := range pids {
			data, _ := os.ReadFile("/proc/" + pid + "/stat")
			fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
			for _, field := range fields[11:13] { // utime, stime: proc_pid_stat(5)
				n, _ := strconv.Atoi(string(field))
				ticks += n
			}
		}
		return ticks
	}
	pss := func(pids []string) (kilobytes int) {
		for _, pid := range pids {
			data, _ := os.ReadFile("/proc/" + pid + "/smaps_rollup")
			_, rest, _ := strings.Cut(string(data), "\nPss:")
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			kilobytes += n
		}
		return kilobytes
	}
	for b.Loop() {
		server, spare := cpu(tree[:1]), cpu(tree[1:])
		time.Sleep(time.Minute)
		b.ReportMetric(float64(cpu(tree[:1])-server)*10, "server-cpu-ms/min") // a tick is 10 ms
		b.ReportMetric(float64(cpu(tree[1:])-spare)*10, "spare-cpu-ms/min")
	}
	b.ReportMetric(float64(pss(tree[:1]))/1024, "server-MB")
	b.ReportMetric(float64(pss(tree[1:]))/1024, "spare-MB")
}

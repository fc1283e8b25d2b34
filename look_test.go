package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// marked lists the processes with the marker among their arguments, by the
// test's own look at the process table.
func marked(t testing.TB, marker string) (list []string) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(paths) == 0 {
		t.Fatal("cannot list processes", err)
	}
	for _, path := range paths {
		if data, _ := os.ReadFile(path); bytes.Contains(data, []byte(marker)) {
			list = append(list, filepath.Base(filepath.Dir(path))+" "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return list
}

// killMarked ends what a negative control left, and only that.
func killMarked(t testing.TB, marker string) {
	t.Helper()
	eventually(t, "the control's processes are gone", func() bool {
		list := marked(t, marker)
		for _, line := range list {
			pid, _, _ := strings.Cut(line, " ")
			if number, err := strconv.Atoi(pid); err == nil {
				syscall.Kill(number, syscall.SIGKILL)
			}
		}
		return len(list) == 0
	})
}

// childPIDs lists the processes, zombies too, whose parent is pid.
func childPIDs(pid int) (list []int) {
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		if parentOf(path) == pid {
			child, _ := strconv.Atoi(filepath.Base(path))
			list = append(list, child)
		}
	}
	return list
}

// parentOf reads the parent's pid of a process from its folder in /proc.
func parentOf(path string) (pid int) {
	data, _ := os.ReadFile(path + "/stat")
	if fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:]); len(fields) > 1 {
		pid, _ = strconv.Atoi(string(fields[1]))
	}
	return pid
}

// procStatus is a field of /proc/PID/status, "" for what is no process.
func procStatus(pid int, field string) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut("\n"+string(data), "\n"+field+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}

func kilobytes(pid int, field string) int {
	number, _, _ := strings.Cut(procStatus(pid, field), " ")
	n, _ := strconv.Atoi(number)
	return n
}

// peakMemory is a process's VmHWM, bytes.
func peakMemory(t testing.TB, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmHWM:")
	kilobytes, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}

// running waits for a process with the marker. Its parent is the CLI that runs.
func (s *testServer) running(marker string) (child, cli int) {
	s.t.Helper()
	eventually(s.t, "a marked child runs", func() bool {
		for _, line := range marked(s.t, marker) {
			pid, _, _ := strings.Cut(line, " ")
			child, _ = strconv.Atoi(pid)
			cli, _ = strconv.Atoi(procStatus(child, "PPid"))
		}
		return cli > 1 && cli != s.cmd.Process.Pid
	})
	return child, cli
}

type resources struct{ descriptors, goroutines int }

var goroutinesLine = regexp.MustCompile(`goroutines=(\d+)\.`)

// resources counts what the server holds, when it is idle.
func (s *testServer) resources() (r resources) {
	s.t.Helper()
	before := len(goroutinesLine.FindAllString(s.stderr.String(), -1))
	s.cmd.Process.Signal(syscall.SIGUSR1)
	eventually(s.t, "the server counts its goroutines", func() bool {
		found := goroutinesLine.FindAllStringSubmatch(s.stderr.String(), -1)
		if len(found) > before {
			r.goroutines, _ = strconv.Atoi(found[len(found)-1][1])
		}
		return len(found) > before
	})
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	r.descriptors = len(entries)
	return r
}

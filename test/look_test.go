package test

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

// process is a process and when it started, as its pid may be used again.
type process struct {
	pid     int
	started string
}

func identify(pid int) process { return process{pid, statField(pid, 22)} }

// lives says whether the process is still there, be it as a zombie.
func (p process) lives() bool { return p.started != "" && identify(p.pid) == p }

// statField reads a field of /proc/PID/stat behind the name, which is the
// second and may hold anything: proc_pid_stat(5). It is "" for what is no process.
func statField(pid, number int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) <= number-3 {
		return ""
	}
	return string(fields[number-3])
}

// parentOf is a process's parent, 0 for what is no process.
func parentOf(pid int) (parent int) {
	parent, _ = strconv.Atoi(statField(pid, 4))
	return parent
}

// childPIDs lists the processes, zombies too, whose parent is pid.
func childPIDs(pid int) (list []int) {
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		child, _ := strconv.Atoi(filepath.Base(path))
		if parentOf(child) == pid {
			list = append(list, child)
		}
	}
	return list
}

// procStatus is a field of /proc/PID/status, "" for what is no process.
func procStatus(pid int, field string) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut("\n"+string(data), "\n"+field+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}

// kilobytes is such a field that is a size.
func kilobytes(pid int, field string) int {
	number, _, _ := strings.Cut(procStatus(pid, field), " ")
	n, _ := strconv.Atoi(number)
	return n
}

// marked lists the processes with the marker among their arguments, by the
// test's own look at the process table.
func marked(t testing.TB, marker string) (list []string) {
	t.Helper()
	needsLinux(t)
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(paths) == 0 {
		t.Fatal("cannot list processes", err)
	}
	for _, path := range paths {
		if data, _ := os.ReadFile(path); bytes.Contains(data, []byte(marker)) {
			pid := filepath.Base(filepath.Dir(path))
			list = append(list, pid+" "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return list
}

// nothingLeft wants no process with the marker.
func nothingLeft(t testing.TB, marker string) {
	t.Helper()
	if list := marked(t, marker); len(list) > 0 {
		t.Errorf("%d processes outlived their command:\n%s", len(list), strings.Join(list, "\n"))
	}
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

// running waits for a process with the marker. Its parent is the CLI that runs.
func (s *testServer) running(marker string) (child, cli int) {
	s.t.Helper()
	eventually(s.t, "a marked child runs", func() bool {
		for _, line := range marked(s.t, marker) {
			pid, _, _ := strings.Cut(line, " ")
			child, _ = strconv.Atoi(pid)
			cli = parentOf(child)
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

// back waits until the server holds no more than before, and slack of each.
func (s *testServer) back(before resources, slack int) (now resources) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("descriptors and goroutines are back at %+v", before), func() bool {
		now = s.resources()
		return now.descriptors <= before.descriptors+slack && now.goroutines <= before.goroutines+slack
	})
	return now
}

// countable lets an ordinary user's test count the server's descriptors.
func (s *testServer) countable() { s.cmd.Process.Signal(syscall.SIGUSR2) }

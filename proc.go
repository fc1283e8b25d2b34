package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// What the kernel's process table says of this process's children. All of it may be
// old when it is read: only wait(2) knows for certain.

// childrenNow lists the pids of this process's children, zombies too. It can miss
// some that come or go meanwhile.
func childrenNow() []int {
	// One file for each thread, as a child is its thread's (proc_pid_task(5)).
	paths, _ := filepath.Glob("/proc/self/task/[0-9]*/children")
	if len(paths) == 0 {
		return childrenBySearch() // a kernel without CONFIG_PROC_CHILDREN
	}

	var pids []int
	for _, path := range paths {
		data, _ := os.ReadFile(path)
		for field := range bytes.FieldsSeq(data) {
			pid, err := strconv.Atoi(string(field))
			if err == nil && pid > 0 { // 0 would be this process's own group, for kill(2)
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// childrenBySearch asks every process for its parent.
func childrenBySearch() []int {
	var pids []int
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		_, parent := readStat(pid)
		if parent == os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// readStat reads a process's name, such as `7 (sh)`, and its parent's pid, which is
// 0 for a process that is gone: proc_pid_stat(5).
func readStat(pid int) (name string, parent int) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	end := bytes.LastIndexByte(data, ')') + 1 // the name before it may hold anything

	fields := bytes.Fields(data[end:])
	if len(fields) < 2 {
		return "", 0
	}
	parent, _ = strconv.Atoi(string(fields[1]))
	return string(data[:end]), parent
}

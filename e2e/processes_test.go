package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// left lists the processes of this run but the server, by this test's own look.
func (v *vm) left() []string {
	if v.container == "" {
		return markedProcesses(v.mark, v.cmd.Process.Pid)
	}
	if v.ended() {
		return nil // and with PID 1 all processes of its namespace
	}
	output, err := exec.Command(engine, "top", v.container, "-eo", "pid,args").Output()
	if engine == "podman" {
		output, err = exec.Command(engine, "top", v.container, "pid", "args").Output()
	}
	if err != nil {
		return nil
	}
	var list []string
	for _, line := range strings.Split(strings.TrimSpace(string(output)), "\n")[1:] {
		if !strings.Contains(line, "vm-server") {
			list = append(list, line)
		}
	}
	return list
}

// markedProcesses lists those with the mark in their environment, the server's
// children, and the zombies among them.
func markedProcesses(mark string, server int) (list []string) {
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		environ, _ := os.ReadFile(path + "/environ")
		stat, _ := os.ReadFile(path + "/stat")
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		isChild := len(fields) > 1 && fields[1] == strconv.Itoa(server)
		if pid != server && (bytes.Contains(environ, []byte(mark)) || isChild) {
			args, _ := os.ReadFile(path + "/cmdline")
			list = append(list, fmt.Sprintf("%d %s", pid, bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
		}
	}
	return list
}

func (v *vm) nothingLeft() {
	v.t.Helper()
	if list := v.left(); len(list) > 0 {
		v.t.Errorf("%d processes are left:\n%s", len(list), strings.Join(list, "\n"))
	}
}

// killAll ends what a control left, until the look finds none of it.
func (v *vm) killAll(look func() []string) {
	v.t.Helper()
	v.eventually("what was left is gone", func() bool {
		list := look()
		for _, line := range list {
			pid, _, _ := strings.Cut(line, " ")
			exec.Command("kill", "-9", pid).Run()
		}
		return len(list) == 0
	})
}

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestMain lets the test binary be three things: the tests, vm-server itself
// (a process of its own for every test, as a subreaper must be), and the
// hostile claude that it runs.
func TestMain(m *testing.M) {
	switch role := os.Getenv("TEST_SERVER"); {
	case len(os.Args) > 1 && os.Args[1] == "-p":
		hostileClaude()
	case len(os.Args) > 1 && os.Args[1] == "descend":
		descend(os.Args[2:])
	case role != "":
		if err := serverRole(role); err != nil {
			fmt.Fprintln(os.Stderr, "vm-server:", err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// serverRole runs the server as main does or, in another role than "1", as
// serveAs says. SIGUSR1 makes it print its goroutines, SIGUSR2 makes it dumpable.
func serverRole(role string) error {
	dumpable := make(chan os.Signal, 1)
	signal.Notify(dumpable, syscall.SIGUSR2)
	go func() {
		<-dumpable
		becomeDumpable()
	}()
	count := make(chan os.Signal, 1)
	signal.Notify(count, syscall.SIGUSR1)
	go func() {
		for range count {
			debug.FreeOSMemory() // collects, and returns to the kernel what is free
			fmt.Fprintf(os.Stderr, "goroutines=%d.\n", runtime.NumGoroutine())
		}
	}()
	if os.Getenv("TEST_MOUNT_PROC") != "" {
		// In a pid namespace of its own, as in a container: /proc must show it.
		if err := mountProc(); err != nil {
			return err
		}
	}
	if role == "1" {
		return run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
	}
	return serveAs(role)
}

func TestHelpAndVersionArePrintedAndArgumentsAreRefused(t *testing.T) {
	t.Parallel()
	for flag, want := range map[string]string{
		"-h": "VM_SHUTDOWN_GRACE (default 30s)", "--help": "VM_TOKEN", "-version": "vm-server dev\n",
	} {
		var out bytes.Buffer
		err := run(context.Background(), []string{flag}, &out, io.Discard)
		if err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s printed %q, %v", flag, out.String(), err)
		}
	}
	err := run(context.Background(), []string{"serve"}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "cannot use arguments") {
		t.Errorf("an argument: %v", err)
	}
}

func TestAShutdownAnswersEveryCommand(t *testing.T) {
	t.Parallel()
	const canceled = "canceled shutting_down"
	tests := []struct {
		name, running, grace string
		signals              int
		want                 map[string]string // status and code of each answer
	}{
		{"the running command may end, the waiting one is told", "waits-to-go", "20s", 1,
			map[string]string{"waits-to-go": "success", "queued": canceled}},
		{"after the grace the running command is stopped", "waits", "3s", 1,
			map[string]string{"waits": canceled, "queued": canceled}},
		{"a second signal stops it at once", "waits", "1h", 2,
			map[string]string{"waits": canceled, "queued": canceled}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, "VM_TOKEN=correct", "VM_SHUTDOWN_GRACE="+test.grace)
			outcomes := make(chan reply, 3)
			s.background(context.Background(), test.running, outcomes)
			s.queued(0)
			s.background(context.Background(), "queued", outcomes)
			s.queued(1)
			s.cmd.Process.Signal(syscall.SIGTERM)
			if test.signals > 1 {
				s.logged("msg=stopping")
				s.cmd.Process.Signal(syscall.SIGTERM)
			} else {
				eventually(t, "health says 503", func() bool { status, _ := s.state(); return status == 503 })
				response, body, err := s.post(context.Background(), "late")
				if err != nil || response.StatusCode != 503 || !strings.Contains(body, `"shutting_down"`) {
					t.Errorf("a late command: %v %q %v", response, body, err)
				}
			}
			s.put("go")
			got := map[string]string{}
			for range 2 {
				o := <-outcomes
				got[o.name] = inShort(o.answer)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			if err := s.wait(); err != nil {
				t.Errorf("exit: %v", err)
			}
			if _, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://")); err == nil {
				t.Error("somebody still listens")
			}
		})
	}
}

package test

import (
	"context"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAShutdownAnswersEveryCommand(t *testing.T) {
	t.Parallel()
	const canceled = "canceled shutting_down"
	tests := []struct {
		name, running, grace string
		signals              []os.Signal
		want                 map[string]string // status and code of each answer
	}{
		{"the running command may end, the waiting one is told", "waits-to-go", "20s", []os.Signal{syscall.SIGTERM},
			map[string]string{"waits-to-go": "success", "queued": canceled}},
		{"after the grace the running command is stopped", "waits", "3s", []os.Signal{syscall.SIGTERM},
			map[string]string{"waits": canceled, "queued": canceled}},
		{"a second signal stops it at once", "waits", "1h", []os.Signal{syscall.SIGTERM, syscall.SIGTERM},
			map[string]string{"waits": canceled, "queued": canceled}},
		{"SIGQUIT is such a signal", "waits", "1h", []os.Signal{syscall.SIGQUIT, syscall.SIGQUIT},
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
			s.cmd.Process.Signal(test.signals[0])
			if len(test.signals) > 1 {
				s.logged("msg=stopping")
				s.cmd.Process.Signal(test.signals[1])
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

package test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkCommand and BenchmarkBare do the same work with and without the
// server; compare their medians of one run.
func BenchmarkCommand(b *testing.B) {
	s := startServer(b)
	for b.Loop() {
		if got := s.ask("hello"); got.Status != "success" {
			b.Fatal(got)
		}
	}
	b.ReportMetric(float64(kilobytes(s.cmd.Process.Pid, "VmHWM"))/(1<<10), "peak-MB")
}

func BenchmarkBare(b *testing.B) {
	for b.Loop() {
		cmd := exec.Command(self(b), "-p")
		cmd.Stdin = strings.NewReader(`{"type":"user","message":{"content":"hello"}}` + "\n")
		output, err := cmd.Output()
		if err != nil || !bytes.Contains(output, []byte(`"result":"hello"`)) {
			b.Fatal(err, string(output))
		}
	}
}

// BenchmarkFlood is one command that writes 1 GiB without a newline.
func BenchmarkFlood(b *testing.B) {
	s := startServer(b)
	for b.Loop() {
		if got := s.ask("floods"); got.Status != "success" {
			b.Fatal(got)
		}
	}
	b.ReportMetric(float64(kilobytes(s.cmd.Process.Pid, "VmHWM"))/(1<<10), "peak-MB")
}

// BenchmarkStubborn is the time from the deadline to the answer, with a tree
// that ignores SIGINT and SIGTERM.
func BenchmarkStubborn(b *testing.B) {
	s := startServer(b, "VM_TIMEOUT=100ms", "VM_STOP_GRACE=500ms")
	marker, total := newMarker(), time.Duration(0)
	for b.Loop() {
		got := s.ask("ignores-signals " + marker)
		total += time.Duration(got.DurationMS)*time.Millisecond - 100*time.Millisecond
		if list := marked(b, marker); len(list) > 0 {
			b.Fatal(list)
		}
	}
	b.ReportMetric(float64(total.Milliseconds())/float64(b.N), "ms-after-deadline")
}

// BenchmarkForms takes turns between the two forms of the same command, as the
// speed of a shared machine drifts, and compares their medians.
func BenchmarkForms(b *testing.B) {
	s := startServer(b)
	took := map[string][]time.Duration{}
	for b.Loop() {
		for _, form := range []string{"application/json", "text/event-stream"} {
			begin := time.Now()
			_, body, err := s.post(context.Background(), "hello", "Accept", form)
			if err != nil || !strings.Contains(body, `"success"`) {
				b.Fatal(body, err)
			}
			took[form] = append(took[form], time.Since(begin))
		}
	}
	median := func(form string) float64 {
		slices.Sort(took[form])
		return float64(took[form][len(took[form])/2])
	}
	b.ReportMetric(median("text/event-stream")/median("application/json"), "stream/json")
}

// BenchmarkStream is one command with 100,000 lines of 1 kB.
func BenchmarkStream(b *testing.B) {
	s := startServer(b, "VM_TIMEOUT=5m")
	var bytes atomic.Int64
	for b.Loop() {
		response := s.stream(b, http.DefaultClient, "emits 100000")
		in := bufio.NewReaderSize(response.Body, 1<<20)
		n, err := in.WriteTo(io.Discard)
		response.Body.Close()
		bytes.Add(n)
		if err != nil || n < 100_000_000 {
			b.Fatal(n, err)
		}
	}
	b.SetBytes(bytes.Load() / int64(b.N))
	b.ReportMetric(float64(kilobytes(s.cmd.Process.Pid, "VmHWM"))/(1<<10), "peak-MB")
}

// BenchmarkHostileBodies sends bodies of 8 MiB that name as many things as they can, one and
// then ten at once, all of which are rejected. Run it with -benchtime 1x.
func BenchmarkHostileBodies(b *testing.B) {
	body := `{"images":[{"":0}` + strings.Repeat(`,{"":0}`, (8<<20-100)/7) + `]}`
	for b.Loop() {
		for _, count := range []int{1, 10} {
			s := startServer(b, "VM_TOKEN=correct")
			header := slices.Concat(asJSON, s.authorization())
			var senders sync.WaitGroup
			for range count {
				senders.Go(func() {
					_, text, err := s.send(context.Background(), "POST", "/command", body, header...)
					if err != nil || !strings.Contains(text, "invalid_request") {
						b.Error(text, err)
					}
				})
			}
			senders.Wait()
			peak := float64(kilobytes(s.cmd.Process.Pid, "VmHWM")) / (1 << 10)
			b.ReportMetric(peak, fmt.Sprintf("peak-MB-of-%d", count))
		}
	}
}

// vm-server answers POST /command by running Claude Code, and leaves no process
// behind. README.md says how to use it.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kelseyhightower/envconfig"
	actors "github.com/oklog/run"
)

// version is set by the linker.
var version = "dev"

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "vm-server:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or the process gets SIGTERM, SIGINT or SIGHUP, and
// returns once every command is answered and cleared away.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	switch flag := strings.Join(args, " "); flag {
	case "":
	case "-h", "-help", "--help":
		return envconfig.Usagef("vm", &config{}, stdout, usage)
	case "-version", "--version":
		_, err := fmt.Fprintln(stdout, "vm-server", version)
		return err
	default:
		return fmt.Errorf("cannot use the arguments %q: vm-server is set by environment variables, -h lists them", flag)
	}
	debug.SetMemoryLimit(32 << 20)                    // collect garbage early: the agent needs the memory
	log := slog.New(slog.NewTextHandler(stderr, nil)) // for a person on a terminal, and for machines
	cfg, err := loadConfig(log)
	if err != nil {
		return err
	}
	return newServer(cfg, log).serve(ctx)
}

// maxConnections leaves most of the usual 1024 descriptors to the rest.
const maxConnections = 500

// server is what the actors of one run share.
type server struct {
	cfg      *config
	log      *slog.Logger
	queue    queue
	children children
	proxy    *keyProxy       // nil: the agent gets whatever credentials there are
	running  context.Context // ends when commands must
	abort    context.CancelCauseFunc
	sweep    func(time.Duration) (int, error) // children.sweep; tests leave it out to show what it does
}

func newServer(cfg *config, log *slog.Logger) *server {
	s := &server{cfg: cfg, log: log, queue: queue{changed: make(chan struct{})}}
	s.running, s.abort = context.WithCancelCause(context.Background())
	s.sweep = s.children.sweep
	return s
}

// serve runs the actors until the first of them ends. Their interrupts run in
// the order of Add: the listener drains before the reaper ends.
func (s *server) serve(ctx context.Context) error {
	// To the end: a second signal must not kill the server while it drains.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if err := confine(); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("cannot listen on VM_ADDR: %w", err)
	}
	s.log.Info("listening", "addr", listener.Addr(), "version", version, "token", s.cfg.Token != "", "key_proxy", s.cfg.KeyProxy, "claude", s.cfg.Claude,
		"workspace", s.cfg.Workspace, "user", s.cfg.User, "mcp_config", s.cfg.MCPConfig)

	var group actors.Group
	ctx, cancel := context.WithCancel(ctx)
	group.Add(func() error {
		select {
		case sig := <-signals:
			s.log.Info("stopping", "signal", sig)
		case <-ctx.Done():
		}
		return nil
	}, func(error) { cancel() })

	web := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // of a request; newReply lifts it for the wait that follows
		WriteTimeout:      time.Minute,      // of a refusal, which may come after ReadTimeout; reply.send has its own
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	// The sweep needs descriptors too.
	var connections atomic.Int32
	web.ConnState = func(connection net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if connections.Add(1) > maxConnections {
				connection.Close()
			}
		case http.StateClosed:
			connections.Add(-1)
		}
	}
	group.Add(func() error { return web.Serve(listener) }, func(error) { s.drain(web, signals) })

	if s.cfg.KeyProxy {
		if s.proxy, err = newKeyProxy(os.Getenv("ANTHROPIC_API_KEY"), cmp.Or(os.Getenv("ANTHROPIC_BASE_URL"), "https://api.anthropic.com")); err != nil {
			return err
		}
		group.Add(s.proxy.serve, func(error) { s.proxy.listener.Close() })
	}
	reaping, stop := context.WithCancel(context.Background())
	group.Add(func() error { return s.children.watch(reaping) }, func(error) { stop() })
	return group.Run()
}

// drain refuses what is new, lets the running command end within ShutdownGrace
// or until another signal, stops it then, and closes the listener once every
// answer is sent.
func (s *server) drain(web *http.Server, signals <-chan os.Signal) {
	s.queue.close("the server is stopping")
	for grace := time.After(s.cfg.ShutdownGrace); ; {
		length, _, _, changed := s.queue.look(nil)
		if length == 0 {
			break
		}
		select {
		case <-changed:
		case <-grace:
			s.abort(errShuttingDown)
		case <-signals:
			s.abort(errShuttingDown)
		}
	}
	s.queue.answers.Wait() // each write of them has a deadline
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	web.Shutdown(ctx)
	web.Close()
}

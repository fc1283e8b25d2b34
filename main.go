// vm-server answers POST /command by running Claude Code, and leaves no process
// behind. README.md says how to use it.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
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

// server is what the actors of one run share.
type server struct {
	cfg      *config
	log      *slog.Logger
	queue    queue
	children children
	agents   sync.Mutex            // held by who may have an agent: a command, or who renews the spare
	next     string                // the conversation that the next command continues most likely, "" for a new one; guarded by agents
	spare    atomic.Pointer[agent] // the next agent, which waits; changed with agents held
	keyed    atomic.Pointer[agent] // the agent that may use the key, nil for none
	proxyURL string                // where
	facts    sync.Map              // what else /healthz tells
	running  context.Context       // ends when commands must
	abort    context.CancelCauseFunc
	maxIdle  time.Duration       // an older spare is replaced
	sweep    func() (int, error) // children.sweep; tests leave it out to show what it does
}

func newServer(cfg *config, log *slog.Logger) *server {
	s := &server{cfg: cfg, log: log, maxIdle: 30 * time.Minute}
	s.running, s.abort = context.WithCancelCause(context.Background())
	s.queue.closing, s.queue.cancel = context.WithCancelCause(context.Background())
	s.sweep = s.children.sweep
	return s
}

// serve runs the actors until the first of them ends. Their interrupts run in
// the order of Add: the listener drains before the reaper ends.
func (s *server) serve(ctx context.Context) error {
	// To the end: a second signal must not kill the server while it drains, nor
	// SIGPIPE when nobody reads its log any more.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if err := confine(); err != nil {
		return err
	}
	reserveThreads()
	listener, err := net.Listen("tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("cannot listen on VM_ADDR: %w", err)
	}
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
	web := s.newWeb(s)
	group.Add(func() error { return web.Serve(listener) }, func(error) { s.drain(web, signals) })
	if s.cfg.KeyProxy {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("cannot listen for the agent (VM_KEY_PROXY): %w", err)
		}
		s.proxyURL = "http://" + inner.Addr().String()
		proxy := s.newWeb(s.keyProxy(os.Getenv("ANTHROPIC_API_KEY"), s.cfg.api))
		group.Add(func() error { return proxy.Serve(inner) }, func(error) { proxy.Close() })
	}
	tending, stop := context.WithCancel(context.Background())
	group.Add(func() error { return s.tend(tending) }, func(error) { stop() })
	s.log.Info("listening", "addr", listener.Addr(), "version", version, "token", s.cfg.Token != "", "key_proxy", s.cfg.KeyProxy, "claude", s.cfg.Claude,
		"workspace", s.cfg.Workspace, "user", s.cfg.User, "mcp_config", s.cfg.MCPConfig, "warm", s.cfg.Warm)
	return group.Run()
}

// reserveThreads has the runtime create threads that it keeps, as it ends the program when it wants one and the
// agent has taken every process there may be.
func reserveThreads() {
	var all sync.WaitGroup
	all.Add(16)
	for range 16 {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			all.Done()
			all.Wait()
		}()
	}
}

// newWeb limits slow clients, and connections to a third of the descriptors, which must serve two of these and
// the sweep.
func (s *server) newWeb(handler http.Handler) *http.Server {
	var open atomic.Uint64
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // of a request; who answers for longer lifts it
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ConnState: func(connection net.Conn, state http.ConnState) {
			var limit syscall.Rlimit
			syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
			if state == http.StateNew && open.Add(1) > limit.Cur/3 {
				connection.Close()
			}
			if state == http.StateClosed {
				open.Add(^uint64(0))
			}
		},
	}
}

// tend reaps whenever a child ends, and looks after the spare once a minute, until ctx ends.
func (s *server) tend(ctx context.Context) error {
	ended, minute := make(chan os.Signal, 1), time.Tick(time.Minute) // one signal is enough, as reap collects all
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	s.renewSpare()
	for {
		select {
		case <-ended:
			s.children.reap()
		case <-minute:
			s.renewSpare()
		case <-ctx.Done():
			return nil
		}
	}
}

// drain refuses what is new, lets the running command end within ShutdownGrace
// or until another signal, stops it then, and closes the listener once every
// answer is sent.
func (s *server) drain(web *http.Server, signals <-chan os.Signal) {
	s.queue.close(errShutdown)
	answered := make(chan struct{})
	go func() {
		s.queue.answers.Wait() // each write of them has a deadline
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(s.cfg.ShutdownGrace):
	case <-signals:
	}
	s.abort(errShutdown)
	<-answered
	s.agents.Lock() // no spare is started any more
	defer s.agents.Unlock()
	s.takeSpare("none")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	web.Shutdown(ctx)
	web.Close()
}

// vm-server answers POST /command by running Claude Code, and leaves no process behind.
// README.md tells how to use it.
//
// The core, about 1,900 lines, keeps the hard promises: nothing is left behind, every
// command gets one true answer, and only those who may ask are answered. In reading order:
//
//	main.go       starts the parts, and stops them
//	auth.go       who may send requests
//	handler.go    what each request is answered
//	queue.go      whose turn it is
//	operation.go  a command and its clients
//	command.go    one command, from its turn to its answer
//	exec.go       one Claude Code process
//	reaper.go     kills and reaps what it left
//
// A mistake in any other file costs convenience, or what that file itself is for:
//
//	config.go       variables and their checks
//	user.go         the agent's user, program and folder (VM_USER, VM_CLAUDE)
//	credentials.go  the agent's environment, and which credentials it lacks (VM_KEY_PROXY)
//	proxy.go        the credential proxy, with proxy_git.go (VM_GIT_TOKEN)
//	files.go        files both ways (VM_MAX_FILE)
//	limits.go       how many connections there may be
//	request.go      reads and checks a body
//	response.go     sends JSON and event streams (VM_HEARTBEAT)
//	message.go      what the CLI prints
//	result.go       what answer that is
//	warm.go         the CLI that waits for the next command (VM_WARM)
//	errors.go       codes, statuses and messages
//	log.go          a log that holds up nothing
//	sys_linux.go    system calls; sys_other.go, to build elsewhere
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/kelseyhightower/envconfig"
	group "github.com/oklog/run"
)

// version is set by the linker.
var version = "dev"

func main() {
	err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm-server:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or the process gets SIGTERM, SIGINT, SIGHUP or SIGQUIT, and
// returns once every command is answered and nothing of it is left.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	switch strings.Join(args, " ") {
	case "":
	case "-h", "-help", "--help":
		return envconfig.Usagef("vm", &config{}, stdout, usage)
	case "-version", "--version":
		_, err := fmt.Fprintln(stdout, "vm-server", version)
		return err
	default:
		// Not quoted: some put options of docker run, such as -e VM_TOKEN=…, after the image.
		return errors.New("cannot use arguments: " +
			"vm-server is configured by environment variables; -h lists them")
	}

	stdlog.SetOutput(io.Discard)   // net/http quotes there what an upstream sends unasked
	debug.SetMemoryLimit(32 << 20) // collect garbage early: the agent needs the memory
	log, rejectLog, writer := newLog(stderr)
	defer writer.flush()

	cfg, err := loadConfig(log)
	if err != nil {
		return err
	}

	return newServer(cfg, log, rejectLog).serve(ctx)
}

// server has the parts of one run. Each knows those below it only:
//
//	handler → operations → queue
//	        → runner → standby → agentStarter → reaper
//	                 → credentialProxy
//
// Locks are taken in this order, and none is held while one before it is taken: that of
// standby, which a command holds throughout; of operations; of the queue; and one of an
// operation, the reaper or health.
type server struct {
	cfg     *config
	log     *slog.Logger
	queue   *queue
	reaper  *reaper
	starter *agentStarter
	standby *standby
	proxy   *credentialProxy
	handler *handler

	cancelAll context.CancelCauseFunc // ends every operation
	fatal     chan error              // gets an error after which the server can't go on
}

func newServer(cfg *config, log, rejectLog *slog.Logger) *server {
	s := &server{cfg: cfg, log: log, fatal: make(chan error, 1)}
	ctx, cancelAll := context.WithCancelCause(context.Background())
	health := &health{}

	s.cancelAll = cancelAll
	s.queue = newQueue(cfg.Queue)
	s.reaper = &reaper{}
	s.proxy = newCredentialProxy(cfg, log)
	s.starter = &agentStarter{cfg: cfg, log: log, reaper: s.reaper}
	s.standby = &standby{
		cfg:     cfg,
		log:     log,
		starter: s.starter,
		reaper:  s.reaper,
		health:  health,
		queue:   s.queue,
		fatal:   s.setFatal,
	}

	operations := newOperations(ctx, s.queue)
	files := newFileStore(cfg)
	runner := &runner{
		cfg:        cfg,
		log:        log,
		queue:      s.queue,
		operations: operations,
		standby:    s.standby,
		proxy:      s.proxy,
		health:     health,
		files:      files,
	}

	s.handler = &handler{
		cfg:        cfg,
		log:        log,
		rejectLog:  rejectLog,
		auth:       &authenticator{token: cfg.Token},
		bodies:     newBodyReader(cfg),
		queue:      s.queue,
		operations: operations,
		runner:     runner,
		standby:    s.standby,
		health:     health,
		files:      files,
	}
	return s
}

// setFatal ends the server with an error. No command starts after it.
func (s *server) setFatal(err error) {
	s.queue.close(errShutdown)
	select {
	case s.fatal <- err:
	default: // it ends already
	}
}

// serve runs the actors until the first of them ends. Then run.Group interrupts them one
// after another, in the order of Add, and each needs the later ones:
//
//  1. signals: nothing needs it, but its channel stays, for drain.
//  2. HTTP: drains. The agent of the running command still needs the credential proxy.
//  3. credential proxy: closes, since no agent is left.
//  4. reaper: ends last.
func (s *server) serve(ctx context.Context) error {
	signals := notifySignals()
	err := hardenProcess()
	if err != nil {
		return err
	}

	preallocThreads()

	listener, err := net.Listen("tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("cannot listen on VM_ADDR: %w; "+
			"end what listens there, or give another address", err)
	}

	var actors group.Group
	s.addSignals(&actors, ctx, signals)
	s.addHTTPServer(&actors, listener, signals)
	if s.cfg.credentials.proxied || s.cfg.GitToken != "" {
		err := s.addProxy(&actors)
		if err != nil {
			return err
		}
	}

	s.addReaper(&actors)

	s.logStart(listener)
	return actors.Run()
}

// notifySignals catches signals to the end: a second SIGTERM must not kill the server
// while it drains, nor SIGPIPE when nobody reads its log any more.
func notifySignals() <-chan os.Signal {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return signals
}

func (s *server) addSignals(actors *group.Group, ctx context.Context, signals <-chan os.Signal) {
	ctx, cancel := context.WithCancel(ctx)
	wait := func() error {
		select {
		case sig := <-signals:
			s.log.Info("stopping", "signal", sig)
		case err := <-s.fatal:
			return err
		case <-ctx.Done():
		}
		return nil
	}

	actors.Add(wait, func(error) { cancel() })
}

func (s *server) addHTTPServer(
	actors *group.Group, listener net.Listener, signals <-chan os.Signal) {
	web := newHTTPServer(s.handler, s.log, clientShare)
	serve := func() error { return web.Serve(listener) }
	actors.Add(serve, func(error) { s.drain(web, signals) })
}

func (s *server) addProxy(actors *group.Group) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("cannot listen for the agent: %w", err)
	}

	s.starter.proxyURL = "http://" + listener.Addr().String() // before the first agent starts

	web := newHTTPServer(s.proxy, s.log, agentShare)
	serve := func() error { return web.Serve(listener) }
	actors.Add(serve, func(error) { web.Close() })
	return nil
}

// addReaper reaps whenever a child ends, and looks after the waiting agent.
func (s *server) addReaper(actors *group.Group) {
	ctx, cancel := context.WithCancel(context.Background())
	loop := func() error {
		ended := make(chan os.Signal, 1) // one is enough, as reapAll looks at all children
		signal.Notify(ended, syscall.SIGCHLD)
		defer signal.Stop(ended)
		tick := time.Tick(500 * time.Millisecond)
		minute := time.Tick(time.Minute)

		s.standby.prepareNext()
		for {
			select {
			case <-ended:
				s.reaper.reapAll()
			case <-tick:
				s.standby.maintain()
			case <-minute:
				s.standby.replaceOld()
			case <-ctx.Done():
				return nil
			}
		}
	}

	actors.Add(loop, func(error) { cancel() })
}

// drain rejects what is new, lets the running command end within ShutdownGrace or until
// another signal, stops it then, and closes the listener when its answer has been sent.
// Clients get until answerTimeout after the shutdown began, or two seconds after the last
// command's end, to read their answers.
func (s *server) drain(web *http.Server, signals <-chan os.Signal) {
	const answerTimeout = 10 * time.Second
	began := time.Now()
	s.queue.close(errShutdown)
	select {
	case <-s.queue.drained:
	case <-time.After(s.cfg.ShutdownGrace):
	case <-signals:
	}
	s.cancelAll(errShutdown)
	<-s.queue.drained // soon, since a stopped agent ends or is given up
	s.standby.close()

	left := max(2*time.Second, answerTimeout-time.Since(began))
	ctx, cancel := context.WithTimeout(context.Background(), left)
	defer cancel()
	web.Shutdown(ctx)
	web.Close()
}

func (s *server) logStart(listener net.Listener) {
	s.log.Info("listening",
		"addr", listener.Addr(),
		"version", version,
		"token", s.cfg.Token != "",
		"key_proxy", s.cfg.credentials.proxied,
		"git_token", s.cfg.GitToken != "",
		"git_host", s.cfg.GitHost,
		"claude", s.cfg.Claude,
		"workspace", s.cfg.Workspace,
		"user", s.cfg.User,
		"mcp_config", s.cfg.MCPConfig,
		"warm", s.cfg.Warm)
}

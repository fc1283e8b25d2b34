// vm-server answers POST /command by running Claude Code, and leaves no process
// behind. README.md says how to use it.
//
// To read it, follow a command: config.go (and environ.go, api.go, git.go,
// paths.go, account.go, which it calls), listener.go, handler.go, request.go,
// queue.go, command.go, spare.go, exec.go and sweep.go; and back with what it came
// to: lines.go, transcript.go, reply.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/kelseyhightower/envconfig"
	actors "github.com/oklog/run"
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

// run serves until ctx ends or the process gets SIGTERM, SIGINT or SIGHUP, and
// returns once every command is answered and cleared away.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flag := strings.Join(args, " ")
	switch flag {
	case "":
	case "-h", "-help", "--help":
		return envconfig.Usagef("vm", &config{}, stdout, usage)
	case "-version", "--version":
		_, err := fmt.Fprintln(stdout, "vm-server", version)
		return err
	default:
		// Not quoted: some put docker's options, such as -e VM_TOKEN=…, behind the image.
		return errors.New("cannot use arguments: " +
			"vm-server is set by environment variables; -h lists them")
	}

	stdlog.SetOutput(io.Discard)   // net/http quotes there what a server sends unasked
	debug.SetMemoryLimit(32 << 20) // collect garbage early: the agent needs the memory
	log, refusals, sink := newLog(stderr)
	defer sink.flush()

	cfg, err := loadConfig(log)
	if err != nil {
		return err
	}
	return newServer(cfg, log, refusals).serve(ctx)
}

// serve runs the actors until the first of them ends. Then run.Group interrupts
// them one after another, in the order of Add, and each must find the later ones
// at work:
//
//  1. signals: nothing depends on it any more, but its channel stays, for drain.
//  2. web: drains. The running command's agent still needs the key proxy, and the
//     reaper, which notices its end (a sweep reaps too, but only after that end).
//  3. key proxy: closes, as no agent is left to ask it.
//  4. reaper: ends last, as a drain waits for what it reaps.
func (s *server) serve(ctx context.Context) error {
	signals := listenToSignals()
	err := confine()
	if err != nil {
		return err
	}
	reserveThreads()

	listener, err := net.Listen("tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("cannot listen on VM_ADDR: %w; "+
			"end what listens there, or give another address", err)
	}

	var group actors.Group
	s.addSignals(&group, ctx, signals)
	s.addWeb(&group, listener, signals)
	if s.cfg.keyProxied || s.cfg.GitToken != "" {
		err := s.addProxy(&group)
		if err != nil {
			return err
		}
	}
	s.addReaper(&group)

	s.logStart(listener)
	return group.Run()
}

// listenToSignals catches them to the end: a second SIGTERM must not kill the
// server while it drains, nor SIGPIPE when nobody reads its log any more.
func listenToSignals() <-chan os.Signal {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return signals
}

func (s *server) addSignals(group *actors.Group, ctx context.Context, signals <-chan os.Signal) {
	ctx, cancel := context.WithCancel(ctx)
	wait := func() error {
		select {
		case sig := <-signals:
			s.log.Info("stopping", "signal", sig)
		case <-ctx.Done():
		}
		return nil
	}
	group.Add(wait, func(error) { cancel() })
}

func (s *server) addWeb(group *actors.Group, listener net.Listener, signals <-chan os.Signal) {
	web := newWebServer(s.handler, s.log, thirdOfDescriptors)
	serve := func() error { return web.Serve(listener) }
	group.Add(serve, func(error) { s.drain(web, signals) })
}

func (s *server) addProxy(group *actors.Group) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("cannot listen for the agent: %w", err)
	}
	s.launcher.proxyURL = "http://" + listener.Addr().String() // no agent has been started yet

	web := newWebServer(s.proxy, s.log, sixthOfDescriptors)
	serve := func() error { return web.Serve(listener) }
	group.Add(serve, func(error) { web.Close() })
	return nil
}

// addReaper reaps whenever a child ends, and looks after the spare once a minute.
func (s *server) addReaper(group *actors.Group) {
	ctx, cancel := context.WithCancel(context.Background())
	tend := func() error {
		ended := make(chan os.Signal, 1) // one signal is enough, as reap collects all
		signal.Notify(ended, syscall.SIGCHLD)
		defer signal.Stop(ended)
		minute := time.Tick(time.Minute)

		s.keeper.renew()
		for {
			select {
			case <-ended:
				s.children.reapAll()
			case <-minute:
				s.keeper.renew()
			case <-ctx.Done():
				return nil
			}
		}
	}
	group.Add(tend, func(error) { cancel() })
}

// drain refuses what is new, lets the running command end within ShutdownGrace or
// until another signal, stops it then, and closes the listener once every answer
// is sent.
func (s *server) drain(web *http.Server, signals <-chan os.Signal) {
	s.queue.close(errShutdown)
	drained := s.queue.drained() // in time, as each write of an answer has a deadline

	select {
	case <-drained:
	case <-time.After(s.cfg.ShutdownGrace):
	case <-signals:
	}
	s.abort(errShutdown)
	<-drained
	s.keeper.retire()

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	web.Shutdown(ctx)
	web.Close()
}

func (s *server) logStart(listener net.Listener) {
	s.log.Info("listening",
		"addr", listener.Addr(),
		"version", version,
		"token", s.cfg.Token != "",
		"key_proxy", s.cfg.keyProxied,
		"git_token", s.cfg.GitToken != "",
		"git_host", s.cfg.GitHost,
		"claude", s.cfg.Claude,
		"workspace", s.cfg.Workspace,
		"user", s.cfg.User,
		"mcp_config", s.cfg.MCPConfig,
		"warm", s.cfg.Warm)
}

package main

import (
	"context"
	"log/slog"
)

// The parts of the server and how they hang together. Each knows those below it;
// what goes up are values, channels, and the three functions that are handed down
// here: the queue's close, the children's sweep, and an agent's stop.
//
//	handler → ledger → queue → commands → keeper → launcher → children
//	                     ↓ lets the agent use
//	                  keyProxy
//
// Locks are taken in this order, and no other is taken meanwhile:
//
//  1. the keeper's, which is held through a whole command;
//  2. the ledger's, below which the queue's alone is taken;
//  3. one of the queue's, an audience's, the children's, health's or the log's.
//     None other is taken with these held.

// server is the parts of one run.
type server struct {
	cfg      *config
	log      *slog.Logger
	queue    *queue
	children *children
	launcher *launcher
	keeper   *keeper
	proxy    *keyProxy
	handler  *handler
	abort    context.CancelCauseFunc // ends every command, with the reason
}

func newServer(cfg *config, log, refusals *slog.Logger) *server {
	s := &server{cfg: cfg, log: log}
	health := &health{}
	running, abort := context.WithCancelCause(context.Background())

	s.abort = abort
	s.queue = newQueue(cfg.Queue)
	s.children = &children{}
	s.proxy = newKeyProxy(cfg, log)
	s.launcher = &launcher{cfg: cfg, log: log, children: s.children}
	s.keeper = &keeper{
		log:      log,
		launcher: s.launcher,
		children: s.children,
		health:   health,
		warm:     cfg.Warm,
		maxAge:   spareAge,
		closing:  s.queue.closing,
		giveUp:   s.queue.close,
		sweep:    s.children.sweep,
	}

	commands := &commands{cfg: cfg, keeper: s.keeper, proxy: s.proxy, health: health}
	s.handler = &handler{
		cfg:      cfg,
		log:      log,
		refusals: refusals,
		doors:    newDoors(cfg),
		queue:    s.queue,
		ledger:   newLedger(s.queue, running),
		commands: commands,
		keeper:   s.keeper,
		health:   health,
		running:  running,
	}
	return s
}

package main

import "context"

// issue lets an agent that isn't there use the key.
func (s *server) issue(placeholder string, stop context.CancelCauseFunc) {
	s.keyed.Store(&agent{placeholder: placeholder, stop: stop})
}

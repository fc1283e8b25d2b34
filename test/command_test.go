package test

import (
	"context"
	"testing"
)

func TestAClientThatGoesAwayCancelsItsCommand(t *testing.T) {
	t.Parallel()
	for _, accept := range []string{"application/json", "text/event-stream"} {
		t.Run(accept, func(t *testing.T) {
			t.Parallel()
			s := startServer(t)
			marker := newMarker()
			ctx, cancel := context.WithCancel(context.Background())
			outcomes := make(chan reply, 1)
			s.background(ctx, "waits "+marker, outcomes, "Accept", accept)
			eventually(t, "the command runs", func() bool { return len(marked(t, marker)) > 0 })
			cancel()
			eventually(t, "its processes are gone", func() bool { return len(marked(t, marker)) == 0 })
			s.logged("status=canceled code=client_gone")
			s.goesOn()
		})
	}
}

package unixsock

import "context"

// A custody is the contexts that close one thing, each with what lets go of it.
// The Done channel stands for the context: it can always be a map's key, and
// contexts that share it end together. The mutex of the thing guards it.
type custody map[<-chan struct{}]func() bool

// add has ctx call close when it is done.
func (c *custody) add(ctx context.Context, close func() error) {
	if ctx.Done() == nil || (*c)[ctx.Done()] != nil {
		return
	}
	if *c == nil {
		*c = make(custody)
	}
	(*c)[ctx.Done()] = context.AfterFunc(ctx, func() { close() })
}

// end lets go of all contexts. The thing is closed.
func (c custody) end() {
	for _, stop := range c {
		stop()
	}
}

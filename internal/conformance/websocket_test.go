package conformance

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"

	"github.com/coder/websocket"
)

func TestWebsocketMessagesReturn(t *testing.T) {
	data := noise(1 << 20)
	eachNetwork(t, func(t *testing.T, n network) {
		closed := make(chan error, 1)
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := websocket.Accept(w, r, nil)
			if err != nil {
				closed <- err
				return
			}
			defer c.CloseNow()
			c.SetReadLimit(-1)
			for {
				kind, message, err := c.Read(r.Context())
				if err == nil {
					err = c.Write(r.Context(), kind, message)
				}
				if err != nil {
					closed <- err
					return
				}
			}
		})}
		go server.Serve(n.listener)
		defer server.Close()

		transport := &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return n.dialContext(ctx) },
		}
		ctx := timeLimit(t)
		c, _, err := websocket.Dial(ctx, "ws://unix.test/", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
		if err != nil {
			t.Fatalf("Dial of a websocket: %v", err)
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for _, size := range []int{0, 1, 125, 126, 1 << 16, len(data)} {
			if err := c.Write(ctx, websocket.MessageBinary, data[:size]); err != nil {
				t.Fatalf("Write of a message of %d bytes: %v", size, err)
			}
			_, got, err := c.Read(ctx)
			checkEcho(t, "websocket message", got, data[:size], err)
		}
		if err := c.Close(websocket.StatusNormalClosure, "the end"); err != nil {
			t.Errorf("Close of a websocket: got %v, want nil", err)
		}
		var status websocket.CloseError
		if err := <-closed; !errors.As(err, &status) || status.Code != websocket.StatusNormalClosure || status.Reason != "the end" {
			t.Errorf("websocket that the client closed: the server got %v, want its status and reason", err)
		}
	})
}

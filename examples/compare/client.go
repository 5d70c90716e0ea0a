package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"time"
)

// clientCommand is the argument that makes this program a client.
const clientCommand = "client"

// An order asks the client process for one sample.
type order struct {
	Package           string // the name of the pkg to connect with
	Path              string
	Clients, Requests int
}

// A result answers an order.
type result struct {
	Took  time.Duration // for all requests
	Error string        `json:",omitempty"`
}

// A client is this program, started again as a client. Orders go to its standard
// input, results come from its standard output.
type client struct {
	cmd     *exec.Cmd
	stdin   io.Closer
	orders  *json.Encoder
	results *json.Decoder
}

func startClient() (*client, error) {
	name, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(name, clientCommand)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &client{cmd, stdin, json.NewEncoder(stdin), json.NewDecoder(stdout)}, nil
}

// stop closes the client's standard input, which ends it.
func (c *client) stop() {
	c.stdin.Close()
	c.cmd.Wait()
}

// measure returns how long one request took.
func (c *client) measure(o order) (float64, error) {
	if err := c.orders.Encode(o); err != nil {
		return 0, fmt.Errorf("client process: %w", err)
	}
	var r result
	if err := c.results.Decode(&r); err != nil {
		return 0, fmt.Errorf("client process: %w", err)
	}
	if r.Error != "" {
		return 0, errors.New(r.Error)
	}
	return float64(r.Took) / float64(o.Requests), nil
}

// runClient carries out orders until there are no more. It is the main function
// of the client process.
func runClient(in io.Reader, out io.Writer) error {
	orders, results := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		if err := orders.Decode(&o); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		runtime.GC()
		var r result
		start := time.Now()
		err := o.carryOut()
		r.Took = time.Since(start)
		if err != nil {
			r.Error = err.Error()
		}
		if err := results.Encode(r); err != nil {
			return err
		}
	}
}

// carryOut makes the requests, each on a connection of its own. Each client makes
// its next request as soon as it has the answer to the previous one.
func (o order) carryOut() error {
	p := theirs
	if o.Package == ours.name {
		p = ours
	}
	var started atomic.Int64
	errs := make(chan error, o.Clients)
	for range o.Clients {
		go func() {
			message := make([]byte, requestSize)
			var err error
			for err == nil && started.Add(1) <= int64(o.Requests) {
				err = request(p, o.Path, message)
			}
			errs <- err
		}()
	}
	var err error
	for range o.Clients {
		err = errors.Join(err, <-errs)
	}
	return err
}

func request(p pkg, path string, message []byte) error {
	c, err := p.dial(path)
	if err != nil {
		return err
	}
	defer c.Close()
	return ask(c, message)
}

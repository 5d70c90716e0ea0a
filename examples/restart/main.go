//go:build !js && !wasip1

// Command restart is a server that replaces itself on SIGHUP without losing a client, and a
// client that watches it. The server, in server.go, starts its successor, which inherits the
// listening socket and with it the backlog. (pkill is in Debian's package procps.)
//
//	go build -o restart.out ./examples/restart
//	./restart.out serve restart.sock &
//	./restart.out client restart.sock                  # in another terminal
//	pkill -HUP -f '^./restart.out serve restart.sock'  # in a third terminal, several times
//	pkill -f '^./restart.out serve restart.sock'       # now the client's requests fail
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: restart serve PATH, or restart client PATH")
	}
	switch role, path := os.Args[1], os.Args[2]; role {
	case "serve":
		if err := serve(path); err != nil {
			log.Fatal(err)
		}
	case "client":
		watch(path)
	default:
		log.Fatalf("unknown role %q", role)
	}
}

// watch sends requests, each over a connection of its own, until Ctrl-C. It prints the first
// answer of each process, and each failure.
func watch(path string) {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	answers, failures, last := 0, 0, ""
	for ticker := time.NewTicker(10 * time.Millisecond); ; {
		answer, err := request(path)
		if err != nil {
			failures++
			log.Print("no answer: ", err)
		} else if answers++; answer != last {
			log.Print(answer)
			last = answer
		}
		select {
		case <-ticker.C:
		case <-interrupted:
			log.Printf("%d answers, %d failures", answers, failures)
			return
		}
	}
}

// request returns the answer to one request.
func request(path string) (string, error) {
	conn, err := unixsock.Connect(path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return ask(conn)
}

// ask sends a request on conn and returns the answer.
func ask(conn *unixsock.Conn) (string, error) {
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, "which process?\n"); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(answer), err
}

// answer answers each line with the number of this process.
func answer(conn net.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute)) // limits the time that an old process stays
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		fmt.Fprintf(conn, "process %d answers\n", os.Getpid())
	}
}

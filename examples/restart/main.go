//go:build !js && !wasip1

// Command restart is a server that replaces itself on SIGHUP without losing a client, and a
// client that watches it. The server, in server.go, starts its successor, which inherits the
// listening socket and with it the backlog. Each process prints its number, and so does the
// program with pid.
//
//	go build -o restart.out ./examples/restart
//	./restart.out serve restart.sock & sleep 1
//	./restart.out client restart.sock & client=$!; sleep 1
//	kill -HUP $(./restart.out pid restart.sock); sleep 1
//	kill -HUP $(./restart.out pid restart.sock); sleep 1
//	kill $client; wait $client  # it has counted 0 failures
//	kill $(./restart.out pid restart.sock); sleep 1; rm restart.out
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
	"syscall"
	"time"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: restart serve PATH, restart client PATH, or restart pid PATH")
	}
	switch role, path := os.Args[1], os.Args[2]; role {
	case "serve":
		if err := serve(path); err != nil {
			log.Fatal(err)
		}
	case "client":
		watch(path)
	case "pid":
		answer, err := request(path)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(strings.Fields(answer)[1])
	default:
		log.Fatalf("unknown role %q", role)
	}
}

// watch sends requests, each over a connection of its own, until Ctrl-C or SIGTERM. It prints the
// first answer of each process, and each failure.
func watch(path string) {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
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

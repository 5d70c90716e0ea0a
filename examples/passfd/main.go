// Command passfd passes an open file to another process. It creates a file without a name,
// starts itself as a child process that inherits a socket, and sends the file over it. The
// child writes to the file, and the parent reads it.
//
//	go run ./examples/passfd
package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"runtime"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	if !unixsock.Available {
		log.Fatalf("Unix domain sockets are not available on %s", runtime.GOOS)
	}
	run := parent
	if len(os.Args) == 2 && os.Args[1] == "child" {
		run = child
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func parent() error {
	mine, its, err := unixsock.Pair()
	if err != nil {
		return err
	}
	defer mine.Close()
	socket, err := its.File()
	if err != nil {
		return err
	}
	its.Close()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, "child")
	cmd.ExtraFiles = []*os.File{socket} // descriptor 3 in the child
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	socket.Close() // so that the end of the child is EOF here

	file, err := os.CreateTemp("", "passfd")
	if err != nil {
		return err
	}
	defer file.Close()
	os.Remove(file.Name())
	fmt.Printf("parent %d: sends a file that has no name\n", os.Getpid())
	if _, err := mine.WriteFiles([]byte("a file for you"), file); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return err
	}
	text, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<20))
	fmt.Printf("parent %d: reads %q in the file\n", os.Getpid(), text)
	return err
}

func child() error {
	socket := os.NewFile(3, "socket")
	conn, err := unixsock.FileConn(socket)
	socket.Close()
	if err != nil {
		return err
	}
	defer conn.Close()
	b := make([]byte, 100)
	n, files, err := conn.ReadFiles(b, 1)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("received %q without a file", b[:n])
	}
	defer files[0].Close()
	fmt.Printf("child %d: receives %q\n", os.Getpid(), b[:n])
	_, err = fmt.Fprintf(files[0], "written by process %d", os.Getpid())
	return err
}

//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package unixsock

import (
	"errors"
	"os"
)

// Available reports whether unix domain sockets are available and supported on
// the current platform. It mirrors unix-socket-available?.
const Available = false

// MaxPathLen is the most bytes that a path may have: none is valid here.
const MaxPathLen = 0

// What follows is never reached, for no path is valid here and every
// constructor ends with that. It lets the portable files compile.

func checkAbstract(string) error            { return errors.ErrUnsupported }
func newSocket() (int, error)               { return -1, errors.ErrUnsupported }
func newFile(int) (*os.File, error)         { return nil, errors.ErrUnsupported }
func closeSocket(int)                       {}
func bindSocket(int, string) error          { return errors.ErrUnsupported }
func listenSocket(int, int) error           { return errors.ErrUnsupported }
func connectSocket(int, string) error       { return errors.ErrUnsupported }
func acceptSocket(int) (int, string, error) { return -1, "", errors.ErrUnsupported }
func readable(int) bool                     { return false }
func shutdownSocket(int, half) error        { return errors.ErrUnsupported }

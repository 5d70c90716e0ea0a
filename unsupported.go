//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package unixsock

import (
	"errors"
	"os"
	"time"
)

// Available reports whether unix domain sockets are available and supported on
// the current platform. It mirrors unix-socket-available?.
const Available = false

// MaxPathLen is the most bytes that a path may have: none is valid here.
const MaxPathLen = 0

// What follows is never reached, for no path is valid here and every
// constructor ends with that. It lets the portable files compile.

func newSocket() (int, error)                               { return -1, errors.ErrUnsupported }
func newFile(int) (*os.File, error)                         { return nil, errors.ErrUnsupported }
func closeSocket(int) error                                 { return errors.ErrUnsupported }
func readSocket(int, []byte) (int, error)                   { return 0, errors.ErrUnsupported }
func writeSocket(int, []byte) (int, error)                  { return 0, errors.ErrUnsupported }
func unlink(string) error                                   { return errors.ErrUnsupported }
func lockDir(string, time.Duration) (func(), bool)          { return func() {}, false }
func (*listenConfig) bind(int, string) (*socketFile, error) { return nil, errors.ErrUnsupported }
func listenSocket(int, int) error                           { return errors.ErrUnsupported }
func connectSocket(int, string) error                       { return errors.ErrUnsupported }
func acceptSocket(int) (int, string, error)                 { return -1, "", errors.ErrUnsupported }
func getpeername(int) (string, error)                       { return "", errors.ErrUnsupported }
func readable(int) bool                                     { return false }
func shutdownSocket(int, half) error                        { return errors.ErrUnsupported }
func newPair() (int, int, error)                            { return -1, -1, errors.ErrUnsupported }
func duplicate(int) (int, error)                            { return -1, errors.ErrUnsupported }
func adoptSocket(int, bool) (string, string, error)         { return "", "", errors.ErrUnsupported }
func peerCred(int) (Cred, error)                            { return Cred{}, errors.ErrUnsupported }
func sendRights(int, []byte, []int) (int, error)            { return 0, errors.ErrUnsupported }
func receiveRights(int, []byte, int) (int, []int, error)    { return 0, nil, errors.ErrUnsupported }
func closeDescriptors([]int)                                {}
func discard(int)                                           {}

//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package sys

import "errors"

// EAGAIN is the error of a call that would have to wait.
var EAGAIN = errors.ErrUnsupported

// Package unixsock calls only Socketpair: no path is valid here, and every constructor but
// Pair fails before it makes a call. The others let the portable code compile.

func Socket() (int, error)                          { return -1, errors.ErrUnsupported }
func Socketpair() (int, int, error)                 { return -1, -1, errors.ErrUnsupported }
func Listen(int, int) error                         { return errors.ErrUnsupported }
func Connect(int, string) error                     { return errors.ErrUnsupported }
func Accept(int) (int, string, error)               { return -1, "", errors.ErrUnsupported }
func AdoptStream(int, bool) (string, string, error) { return "", "", errors.ErrUnsupported }
func Duplicate(int) (int, error)                    { return -1, errors.ErrUnsupported }
func AboveStandard(int) (int, error)                { return -1, errors.ErrUnsupported }
func Close(int) error                               { return errors.ErrUnsupported }
func Read(int, []byte) (int, error)                 { return 0, errors.ErrUnsupported }
func ReadError(err error) error                     { return err }
func Write(int, []byte) (int, error)                { return 0, errors.ErrUnsupported }
func Writev(int, [][]byte) (int, error)             { return 0, errors.ErrUnsupported }
func Poll(int) (readable, shutDown bool)            { return false, false }
func RefuseConnects(int)                            {}
func ShutdownRead(int) error                        { return errors.ErrUnsupported }
func ShutdownWrite(int) error                       { return errors.ErrUnsupported }
func SetReadBuffer(int, int) error                  { return errors.ErrUnsupported }
func SetWriteBuffer(int, int) error                 { return errors.ErrUnsupported }
func SendRights(int, []byte, []int) (int, error)    { return 0, errors.ErrUnsupported }
func ReceiveRights(int, []byte) (int, []int, error) { return 0, nil, errors.ErrUnsupported }
func CloseAll([]int)                                {}

//go:build !linux

package zerocopy

import "syscall"

// SendFile copies nothing.
func SendFile(Socket, syscall.RawConn, int64) (int64, error) { return 0, ErrRefused }

// A Pipe holds nothing.
type Pipe struct{}

// Fill returns no pipe.
func Fill(int, int64) (*Pipe, int, error) { return nil, 0, nil }

// Drain moves nothing.
func (p *Pipe) Drain(syscall.RawConn) (int, []byte) { return 0, nil }

//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package sockfile

import "errors"

// No path is valid here, so package unixsock calls none of these.

type File struct{}

func (o *Options) Bind(int, string, func() error) (*File, error) { return nil, errors.ErrUnsupported }
func FileOf(int, string) *File                                   { return nil }
func (f *File) Remove() error                                    { return nil }

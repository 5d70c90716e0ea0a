//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sys

// For the tests that use package sockettest, which imports this package: they are
// in sys_test.
var FreeDescriptor = freeDescriptor

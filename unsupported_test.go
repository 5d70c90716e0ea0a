//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package unixsock

import (
	"context"
	"errors"
	"os"
	"testing"
)

func TestEveryConstructorIsUnsupported(t *testing.T) {
	if Available {
		t.Error("Available")
	}
	if ValidPath("s") || ValidPath(Abstract("s")) {
		t.Error("a path is valid")
	}
	unit := NewTCPUnit("s")
	for name, f := range map[string]func() error{
		"CheckPath":      func() error { return CheckPath("s") },
		"Connect":        func() error { _, err := Connect("s"); return err },
		"ConnectContext": func() error { _, err := ConnectContext(context.Background(), "s"); return err },
		"Listen":         func() error { _, err := Listen("s"); return err },
		"Pair":           func() error { _, _, err := Pair(); return err },
		"FileConn":       func() error { _, err := FileConn(os.Stdin); return err },
		"FileListener":   func() error { _, err := FileListener(os.Stdin); return err },
		"TCPUnit.Listen": func() error { _, err := unit.Listen("tcp", ":0"); return err },
		"TCPUnit.Dial":   func() error { _, err := unit.Dial("tcp", ":0"); return err },
	} {
		if err := f(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

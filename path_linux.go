package unixsock

import "fmt"

// MaxPathLen is the most bytes that the absolute form of a path, or an abstract
// name with its leading NUL, may have. All of them can be used.
const MaxPathLen = 108

func checkAbstract(name string) error {
	if len(name) > MaxPathLen {
		return fmt.Errorf("%w: the abstract name has %d bytes with its leading NUL, the limit is %d",
			ErrInvalidPath, len(name), MaxPathLen)
	}
	return nil
}

// Package peertest holds tests of unixsock against programs that speak over
// unix domain sockets with code of their own: Racket, whose library unixsock
// mirrors, netcat, socat, curl, Redis, and Go's net. A test is skipped where
// its program is not installed. It has no code of its own.
package peertest

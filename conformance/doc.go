// Package conformance holds tests of unixsock that need other modules: what
// golang.org/x/net/nettest asks of every net.Conn, and crypto/tls, net/rpc,
// gRPC and HTTP/2 on top of it, as users would combine them. It is a module of
// its own so that unixsock's users do not get its dependencies.
package conformance

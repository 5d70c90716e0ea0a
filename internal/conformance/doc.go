// Package conformance tests unixsock with other modules: golang.org/x/net's
// nettest, which checks what every net.Conn must do, and crypto/tls, net/rpc,
// gRPC and HTTP/2, combined as users combine them. It is a separate module, so
// that users of unixsock do not download its dependencies.
package conformance

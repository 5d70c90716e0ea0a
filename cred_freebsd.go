package unixsock

// peerPID returns 0: x/sys/unix has no name for where the PID is.
func peerPID(int) int { return 0 }

package unixsock

// Cred is who is, or was, at the other end of a Conn, by the kernel's word: the
// process that connected, or that called listen, at that moment.
type Cred struct {
	PID int // 0 if the platform, or a namespace, does not tell
	UID int
	GID int
}

// PeerCred returns who is at the other end. On Linux that is SO_PEERCRED; on
// macOS, LOCAL_PEERCRED and LOCAL_PEERPID; on FreeBSD, LOCAL_PEERCRED, without
// the PID. On other platforms the error is [errors.ErrUnsupported].
func (c *Conn) PeerCred() (Cred, error) {
	var cred Cred
	err := c.file.control(func(fd int) (err error) {
		cred, err = peerCred(fd)
		return err
	})
	if err != nil {
		return Cred{}, c.opError("peercred", err)
	}
	return cred, nil
}

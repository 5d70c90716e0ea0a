//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import "testing"

// eachSocatName runs a test with each kind of address that socat has for sockets.
// unixsock knows the socket as name, socat as address.
func eachSocatName(t *testing.T, test func(t *testing.T, name, kind, address string)) {
	program(t, "socat")
	t.Run("UNIX", func(t *testing.T) {
		path := socketDir(t) + "/s"
		test(t, path, "UNIX", path)
	})
	t.Run("ABSTRACT", func(t *testing.T) {
		linux(t)
		name := abstract("s")
		test(t, name, "ABSTRACT", name[1:])
	})
}

func TestSocatIsClient(t *testing.T) {
	data := noise(1<<20 + 1)
	eachSocatName(t, func(t *testing.T, name, kind, address string) {
		l := listen(t, name)
		output := finish(t, peer(t, "socat", "-t20", "-", kind+"-CONNECT:"+address), data)
		echo(t, accept(t, l))
		same(t, output(), data)
	})
}

func TestSocatIsServer(t *testing.T) {
	data := noise(1<<20 + 1)
	eachSocatName(t, func(t *testing.T, name, kind, address string) {
		output := finish(t, peer(t, "socat", "-t20", kind+"-LISTEN:"+address, "-"), data)
		echo(t, connect(t, name))
		same(t, output(), data)
	})
}

// RemoteAddr returns the name to which the client has bound its socket.
func TestSocatsNameIsRemoteAddr(t *testing.T) {
	eachSocatName(t, func(t *testing.T, name, kind, address string) {
		l := listen(t, name)
		output := finish(t, peer(t, "socat", "-t20", "-", kind+"-CONNECT:"+address+",bind="+address+".client"), nil)
		c := accept(t, l)
		if got, want := c.RemoteAddr().String(), name+".client"; got != want {
			t.Errorf("RemoteAddr of a client that is bound: got %q, want %q", got, want)
		}
		echo(t, c)
		output()
	})
}

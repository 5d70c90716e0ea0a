//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package sys

const pollShutDown = 0 // poll(2) does not report it; see Poll

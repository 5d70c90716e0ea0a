package unixsock

// MaxPathLen is the most bytes that the absolute form of a path may have. All
// of them can be used. OpenBSD's kernel wants a NUL behind the path, within the
// 104 bytes that its relatives give to the path alone.
const MaxPathLen = 103

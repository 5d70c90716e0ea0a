package unixsock

// MaxPathLen is the most bytes that the absolute form of a path, or an abstract
// name with its leading NUL, may have. All of them can be used.
const MaxPathLen = 108

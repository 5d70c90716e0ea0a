#lang racket/base
;; A server and a client that exchange lines over a Unix domain socket. The peer is
;; main.go, which takes the same arguments.
;;
;;   racket echo.rkt serve   PATH         serves one client
;;   racket echo.rkt connect PATH WORD ...
;;
;; PATH is the inside of a string literal, so '\x00name' is the abstract name
;; #"\0name".
(require racket/match racket/port racket/unix-socket)

(define (parse-path text)
  (define bytes (read (open-input-string (string-append "#\"" text "\""))))
  (define path (if (regexp-match? #rx#"^\0" bytes) bytes (bytes->path bytes)))
  (unless (unix-socket-path? path)
    (raise-user-error 'echo "not a unix socket path: ~s" path))
  path)

(define (serve path)
  (define listener (unix-socket-listen path))
  (eprintf "racket: listening\n")
  (sync listener) ; the listener is the event
  (define-values (in out) (unix-socket-accept listener))
  (unix-socket-close-listener listener)
  (when (path? path) (delete-file path))
  (define count
    (for/sum ([line (in-lines in)])
      (fprintf out "racket echoes ~a\n" line)
      (flush-output out)
      1))
  (fprintf out "~a lines\n" count)
  (close-output-port out)
  (close-input-port in))

(define (connect path words)
  (define-values (in out) (unix-socket-connect path))
  (for ([word words]) (fprintf out "~a\n" word))
  (close-output-port out) ; the server reads EOF; its answer can still be read
  (copy-port in (current-output-port))
  (close-input-port in))

(match (current-command-line-arguments)
  [(vector "serve" path) (serve (parse-path path))]
  [(vector "connect" path words ...) (connect (parse-path path) words)]
  [_ (raise-user-error "usage: racket echo.rkt serve PATH | connect PATH WORD ...")])

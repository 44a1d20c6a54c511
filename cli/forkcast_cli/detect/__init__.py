"""`forkcast detect`: the detector over a log, anybody's or our own, finished or growing."""

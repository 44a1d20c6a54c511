"""The commands of `forkcast`, one subject a file. What is slow to import is imported when it is needed."""

"""Fuzz targets: every reader of bytes that somebody else may have written.

To add a target: a file in `targets/` with `seeds()`, real inputs to start from, and `feed(data)`, which
must return or raise one of `REFUSALS`, whatever the bytes are. Run one with `python -m tests.fuzz NAME`,
all of them with `make fuzz`.
"""

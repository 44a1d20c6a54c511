"""A folder as a store: create-only by hard link, compare-and-swap under a lock, atomic renames."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forkcast.ports import ObjectInfo
from forkcast_wire.files import flush_folder, replaced
from forkcast_wire.store import limits
from forkcast_wire.store.errors import (
    AlreadyExists,
    Conflict,
    KeyMissing,
    StoreUnavailable,
    check_key,
    check_prefix,
    is_key,
)

_LARGE = 1 << 20  # objects beyond this are identified by inode and time, not by hashing them
_HIDDEN = ".forkcast"
#: Of temporary files; older than this nobody writes them any more.
_PREFIX, _ABANDONED_SECONDS = "tmp", 24 * 3600.0
_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class FolderStore:
    """Objects are files below ``root``; temporary files and the lock stand in ``root/.forkcast``.

    A reader sees a whole object or none: data is written to a temporary file, flushed to disk and
    moved into place. Moves and deletions exclude each other (flock, freed by the kernel when its
    holder dies), so that a compare-and-swap cannot overwrite a version it has not seen. Raises
    StoreUnavailable where the disk refuses.
    """

    def __init__(self, root: Path, *, create: bool = True) -> None:
        """create: make the folder where it is missing; without, the store is only to be read."""
        self.root = root
        self._scratch = root / _HIDDEN
        if not create:
            return
        with self._disk():
            self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep(time.time())

    def _sweep(self, now: float) -> None:
        """Remove what killed writers have left; the folder may be shared by machines, so that only age
        says that nobody writes it any more.
        """
        for path in self._scratch.glob(f"{_PREFIX}*"):
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def get(self, key: str) -> tuple[bytes, str]:
        """(bytes, etag). Raises KeyMissing; StoreError for what is too long to be read as a whole."""
        path = self._path(key)
        with self._disk():
            try:
                with path.open("rb") as file:
                    limits.check_length(key, os.fstat(file.fileno()).st_size)
                    data = file.read()
                    return data, _etag(data, os.fstat(file.fileno()))
            except _NO_FILE:
                raise KeyMissing(key) from None

    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        """Write and return the etag; see `forkcast.ports.Store`."""
        target = self._path(key)
        with self._disk(), self._temporary() as temporary:
            temporary.write_bytes(data)
            return self._place(temporary, target, key, create=create, match=match)

    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        """Put a file's bytes: by a hard link where the file system allows it, so the caller must
        not write to the file afterwards (deleting it is fine); else by a copy.
        """
        target = self._path(key)
        with self._disk(), self._temporary() as temporary:
            temporary.unlink()
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
            return self._place(temporary, target, key, create=create, match=None)

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object out of the store. Raises KeyMissing."""
        source = self._path(key)
        with self._disk():
            try:
                reader = source.open("rb")
            except _NO_FILE:
                raise KeyMissing(key) from None
            with reader, replaced(path, durable=False) as partial:
                shutil.copyfileobj(reader, partial, _LARGE)

    def head(self, key: str) -> ObjectInfo | None:
        """The object's facts, None where it does not exist."""
        path = self._path(key)
        with self._disk():
            try:
                status = path.stat()
            except _NO_FILE:
                return None
        if not path.is_file():
            return None
        if status.st_size > _LARGE:
            return ObjectInfo(key, status.st_size, _etag(b"", status))
        try:
            data, etag = self.get(key)
        except KeyMissing:  # deleted since
            return None
        return ObjectInfo(key, len(data), etag)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with the prefix, in key order. Their etag is left empty: it
        would cost reading every byte.
        """
        top = self.root / check_prefix(prefix).rpartition("/")[0]
        found: dict[str, os.stat_result] = {}
        for folder, folders, files in os.walk(top):  # passes over folders that vanish meanwhile
            folders[:] = [name for name in folders if not name.startswith(".")]
            base = Path(folder).relative_to(self.root)
            for name in files:
                key = (base / name).as_posix()
                if key.startswith(prefix) and is_key(key):
                    with suppress(FileNotFoundError, NotADirectoryError):
                        found[key] = (self.root / key).stat()
        return iter(
            [ObjectInfo(key, s.st_size, "", s.st_mtime) for key, s in sorted(found.items())]
        )

    def delete(self, key: str) -> None:
        """Delete; a missing key is success. Folders left empty go too."""
        path = self._path(key)
        with self._disk(), self._locked():
            with suppress(*_NO_FILE):
                path.unlink()
            for parent in path.parents:
                if parent == self.root:
                    break
                try:
                    parent.rmdir()
                except OSError:  # not empty, or not there
                    break

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(f"{self.root}: {error.strerror}") from error

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=self._scratch)
        os.close(descriptor)
        path = Path(name)
        try:
            yield path
        finally:
            with suppress(FileNotFoundError):
                path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._scratch / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _place(
        self, temporary: Path, target: Path, key: str, *, create: bool, match: str | None
    ) -> str:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
            etag = _etag(b"" if status.st_size > _LARGE else file.read(), status)
        with self._locked():
            if match is not None and ((info := self.head(key)) is None or info.etag != match):
                raise Conflict(key)
            new = [p for p in (target.parent, *target.parents) if not p.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            if create:
                try:
                    os.link(
                        temporary, target
                    )  # fails if the name exists, whichever process made it
                except FileExistsError:
                    raise AlreadyExists(key) from None
            else:
                temporary.replace(target)
            for folder in {target.parent, *(p.parent for p in new)}:
                flush_folder(folder)  # a new name is on disk when its folder is
        return etag


def _etag(data: bytes, status: os.stat_result) -> str:
    if status.st_size > _LARGE:
        return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
    return hashlib.sha256(data).hexdigest()

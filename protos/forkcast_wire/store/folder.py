"""A folder as a store: create-only by hard link, compare-and-swap under a lock, atomic renames."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forkcast.ports import ObjectInfo
from forkcast_wire.store.errors import (
    AlreadyExists,
    Conflict,
    KeyMissing,
    StoreUnavailable,
    check_key,
)

_LARGE = 1 << 20  # objects beyond this are identified by inode and time, not by hashing them
_HIDDEN = ".forkcast"


class FolderStore:
    """Objects are files below ``root``; temporary files stand in ``root/.forkcast``.

    A reader sees a whole object or none: data is written to a temporary file, flushed to disk and
    moved into place. Raises StoreUnavailable where the disk refuses.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._scratch = root / _HIDDEN
        try:
            self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"{root}: {error.strerror}") from error

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def get(self, key: str) -> tuple[bytes, str]:
        """(bytes, etag). Raises KeyMissing."""
        try:
            with self._path(key).open("rb") as file:
                data = file.read()
                return data, _etag(data, os.fstat(file.fileno()))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise KeyMissing(key) from None

    def put(self, key: str, data: bytes, *, create: bool = False, match: str | None = None) -> str:
        """Write and return the etag; see `forkcast.ports.Store`."""
        with self._temporary() as temporary:
            temporary.write_bytes(data)
            return self._place(temporary, key, create=create, match=match)

    def put_file(self, key: str, path: Path, *, create: bool = False) -> str:
        """Copy a file into the store (a hard link where the file system allows it)."""
        with self._temporary() as temporary:
            temporary.unlink()
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
            return self._place(temporary, key, create=create, match=None)

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object out of the store. Raises KeyMissing."""
        source = self._path(key)
        partial = path.with_name(path.name + ".part")
        try:
            shutil.copyfile(source, partial)
        except (FileNotFoundError, IsADirectoryError):
            raise KeyMissing(key) from None
        partial.replace(path)

    def head(self, key: str) -> ObjectInfo | None:
        """The object's facts, None where it does not exist."""
        path = self._path(key)
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not path.is_file():
            return None
        if status.st_size > _LARGE:
            return ObjectInfo(key, status.st_size, _etag(b"", status))
        data, etag = self.get(key)
        return ObjectInfo(key, len(data), etag)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with the prefix, in key order."""
        folder = self.root / prefix.rpartition("/")[0]
        keys = [
            path.relative_to(self.root).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and _HIDDEN not in path.parts
        ]
        for key in sorted(keys):
            if key.startswith(prefix):
                with suppress(KeyMissing, FileNotFoundError):
                    status = (self.root / key).stat()
                    yield ObjectInfo(key, status.st_size, "")

    def delete(self, key: str) -> None:
        """Delete; a missing key is success. Folders left empty go too."""
        path = self._path(key)
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        for parent in path.parents:
            if parent == self.root:
                break
            try:
                parent.rmdir()
            except OSError:
                break

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        try:
            descriptor, name = tempfile.mkstemp(dir=self._scratch)
            os.close(descriptor)
        except OSError as error:
            raise StoreUnavailable(f"{self.root}: {error.strerror}") from error
        path = Path(name)
        try:
            yield path
        except OSError as error:
            raise StoreUnavailable(f"{self.root}: {error.strerror}") from error
        finally:
            with suppress(FileNotFoundError):
                path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._scratch / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _place(self, temporary: Path, key: str, *, create: bool, match: str | None) -> str:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
            etag = _etag(b"" if status.st_size > _LARGE else file.read(), status)
        target = self._path(key)
        while True:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                if create:
                    os.link(temporary, target)
                elif match is not None:
                    self._swap(temporary, target, key, match)
                else:
                    temporary.replace(target)
            except FileExistsError:
                raise AlreadyExists(key) from None
            except FileNotFoundError:
                continue  # a concurrent delete removed the folder that was just made
            return etag

    def _swap(self, temporary: Path, target: Path, key: str, match: str) -> None:
        with self._locked():
            info = self.head(key)
            if info is None or info.etag != match:
                raise Conflict(key)
            temporary.replace(target)


def _etag(data: bytes, status: os.stat_result) -> str:
    if status.st_size > _LARGE:
        return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
    return hashlib.sha256(data).hexdigest()

"""Objects that somebody else has written, of any size and name: found by prefix, and read in parts."""

from __future__ import annotations

from collections.abc import Sequence

from forkcast.ports import ObjectInfo
from forkcast_wire.store.errors import Conflict
from forkcast_wire.store.s3 import S3Store, patient, steady
from forkcast_wire.store.s3_http import AnsweredError


class S3Objects(S3Store):
    """A bucket for reading; the storage's own prefix is not looked at."""

    @steady
    @patient
    def objects(self, prefix: str) -> Sequence[ObjectInfo]:
        """All objects whose name begins with the prefix, by name. Raises StoreRefused, StoreUnavailable."""
        found = self._client.list_objects(self._bucket, prefix=prefix, recursive=True)
        listed = self._call(prefix, lambda: list(found))
        infos = [
            ObjectInfo(one.object_name or "", one.size or 0, (one.etag or "").strip('"'))
            for one in listed
        ]
        return sorted(infos, key=lambda info: info.key)

    @steady
    @patient
    def part(self, name: str, etag: str, first: int, size: int) -> bytes:
        """Up to ``size`` >= 1 bytes from byte ``first`` on, of the version that has this etag.

        Raises Conflict if there is another by now, KeyMissing, StoreRefused, StoreUnavailable.
        """

        def get() -> bytes:
            try:
                response = self._client.get_object(
                    self._bucket, name, first, size, request_headers={"If-Match": f'"{etag}"'}
                )
            except AnsweredError as error:
                if error.status == 412:
                    raise Conflict(name) from None
                raise
            try:
                # a server may ignore the condition
                if str(response.headers.get("ETag", "")).strip('"') != etag:
                    raise Conflict(name)
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

        return self._call(name, get)

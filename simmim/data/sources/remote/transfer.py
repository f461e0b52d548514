"""Bytes of objects in remote storage, through fsspec, in spite of faults on the way.

A fault of the storage or of the way to it (503 SlowDown, a timeout, a reset connection, a body that
ends too early) says nothing about an image. It is tried again, after waits that double, for a
bounded time; then it is an ``OSError``.
"""

import io
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

from simmim.data.formats.decode import StorageError
from simmim.data.formats.image_file import UnreadableError
from simmim.errors import ConfigError, DataError

Result = TypeVar("Result")

PATIENCE = 60.0
"""Seconds for which one read is tried; below the time after which a worker counts as hung."""
FIRST_WAIT = 0.1
LONGEST_WAIT = 10.0
"""Seconds between tries: the first, and what doubling it ends at. Without chance, on purpose."""
ANSWER = 20.0
"""Seconds without a byte after which a try counts as failed."""
LEAST_WINDOW, MOST_WINDOW = 1 << 16, 1 << 22
"""Bytes that are fetched at once where headers are read: few, or many where they lie close."""
PACKAGES = {
    "s3": "remote",
    "s3a": "remote",
    "http": "remote",
    "https": "remote",
    "gs": "gcs",
    "gcs": "gcs",
}
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket, "
    "FSSPEC_S3_ANON=true",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS; for "
    "a public bucket, FSSPEC_GS_TOKEN=anon",
}
REFUSED = {
    *("ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed"),
    *("InvalidToken", "TokenRefreshRequired", "NoCredentialsError", "PartialCredentialsError"),
    *("CredentialRetrievalError", "ProfileNotFound", "DefaultCredentialsError", "RefreshError"),
    *("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError"),
}
"""Codes and exceptions that tell of the user's credentials, whatever the object."""
PASSING = {408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524}
"""HTTP answers that may be other ones in a moment."""


class Object(NamedTuple):
    """An object in remote storage: its URL, its bytes (-1: not told), and what changes with it."""

    url: str
    size: int
    stamp: str


class _TransportError(OSError):
    """A fault that may pass."""


def scheme_of(where: str) -> str:
    """Return the scheme of a URL such as ``s3://bucket/key``; "" for a path."""
    scheme, mark, _ = where.partition("://")
    return scheme.lower() if mark and scheme.replace("+", "").isalnum() else ""


def read_range(url: str, at: int, size: int) -> bytes:
    """Return exactly ``size`` bytes of an object, from byte ``at`` on.

    Raises:
        UnreadableError: There is no such object, or it may not be read.
        OSError: The storage still fails after a minute.
    """
    if size == 0:
        return b""

    def work() -> bytes:
        system = _system(url)
        data = _ranged(system, url, at, size)
        if len(data) != size:
            raise _TransportError(f"the body ended after {len(data):,} of {size:,} bytes")
        return data

    return _patiently(url, work)


def read_whole(url: str, most: int) -> bytes:
    """Return all bytes of an object; more than ``most`` are an UnreadableError.

    Raises:
        UnreadableError: There is no such object, it may not be read, or it is too large.
        OSError: The storage still fails after a minute.
    """
    if scheme_of(url) not in ("http", "https"):
        size = object_at(url).size
        if size > most:
            raise UnreadableError(f"too large: a file of more than {most >> 30} GB")
        return read_range(url, 0, size)
    return _patiently(url, lambda: bytes(_system(url).cat_file(url)))


def object_at(url: str) -> Object:
    """Ask for the size and the version of one object; the errors are those of ``read_range``."""
    return _patiently(url, lambda: _object(url, _system(url).info(url)))


def find_objects(url: str) -> list[Object]:
    """List all objects below a prefix, sorted; [] where there are none.

    Raises:
        UnreadableError: It may not be listed.
        OSError: The storage still fails after a minute.
    """

    def work() -> list[Object]:
        system = _system(url)
        found = system.find(url, detail=True)
        return sorted(
            _object(system.unstrip_protocol(name), info)
            for name, info in found.items()
            if info.get("type") != "directory" and not name.endswith("/")
        )

    return _patiently(url, work)


class RangedFile(io.RawIOBase):
    """A remote object as a seekable file, of which only what is asked for is fetched.

    Meant for headers that lie apart: as long as they are close to one another the object is read
    through in pieces that grow to 4 MB, and where they are far apart 64 kB are fetched for each.
    """

    def __init__(self, url: str, size: int) -> None:
        super().__init__()
        self._url, self._size = url, size
        self._place = 0
        self._window = LEAST_WINDOW
        self._held: deque[tuple[int, bytes]] = deque(maxlen=2)

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def seekable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def tell(self) -> int:
        """See ``io.RawIOBase``."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See ``io.RawIOBase``."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        """See ``io.RawIOBase``."""
        left = max(0, self._size - self._place)
        size = left if size is None or size < 0 else min(size, left)
        data = self.pread(self._place, size)
        self._place += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        """See ``io.RawIOBase``."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def pread(self, at: int, size: int) -> bytes:
        """Return ``size`` bytes from ``at``, fewer at the end of the object."""
        size = min(size, max(0, self._size - at))
        if not size:
            return b""
        for begin, held in self._held:
            if begin <= at and at + size <= begin + len(held):
                return held[at - begin : at - begin + size]
        if self._held:
            begin, held = self._held[-1]
            near = 0 <= at - begin - len(held) + size <= self._window + size
            self._window = min(2 * self._window, MOST_WINDOW) if near else LEAST_WINDOW
        length = min(max(size, self._window), self._size - at)
        data = read_range(self._url, at, length)
        self._held.append((at, data))
        return data[:size]


_SYSTEMS: dict[tuple[int, str], Any] = {}
"""File systems by process and scheme; those of a parent are kept, and never used."""


def _system(url: str) -> Any:
    """Return this process's file system for a URL: connections do not survive a fork."""
    scheme = scheme_of(url)
    key = (os.getpid(), scheme)
    if key not in _SYSTEMS:
        _SYSTEMS[key] = _connect(scheme)
    return _SYSTEMS[key]


def _connect(scheme: str) -> Any:
    extra = PACKAGES.get(scheme)
    how = f"pip install 'simmim[{extra}]'" if extra else f"install fsspec's package for {scheme}"
    try:
        import fsspec

        options = _options(scheme)
        system = fsspec.filesystem(
            scheme, skip_instance_cache=True, use_listings_cache=False, **options
        )
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs a package that is not there ({error}): {how}."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{scheme}:// is no storage that fsspec knows ({error}).") from error
    if scheme in ("s3", "s3a"):
        system.retries = 1  # ours are bounded in time, its own are not
    return system


def _options(scheme: str) -> dict[str, Any]:
    if scheme in ("s3", "s3a"):
        config = {"connect_timeout": ANSWER, "read_timeout": ANSWER}
        return {"config_kwargs": {**config, "retries": {"total_max_attempts": 1}}}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER, sock_read=ANSWER)
        return {"client_kwargs": {"timeout": timeout}}
    return {}


def _ranged(system: Any, url: str, at: int, size: int) -> bytes:
    if scheme_of(url) not in ("http", "https"):
        return bytes(system.cat_file(url, start=at, end=at + size))

    async def get() -> bytes:
        session = await system.set_session()
        headers = {"Range": f"bytes={at}-{at + size - 1}", "Accept-Encoding": "identity"}
        async with session.get(system.encode_url(url), headers=headers) as answer:
            answer.raise_for_status()
            if answer.status != 206:
                raise UnreadableError(
                    "the server does not answer requests for a part of a file; download it, and "
                    "give the copy"
                )
            return await answer.read()

    from fsspec.asyn import sync

    return cast("bytes", sync(system.loop, get))


def _object(url: str, info: dict[str, Any]) -> Object:
    size = info.get("size")
    keys = ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "mtime", "created")
    stamp = next((str(info[key]) for key in keys if info.get(key)), "")
    return Object(url, -1 if size is None else int(size), stamp.strip('"'))


def _patiently(url: str, work: Callable[[], Result]) -> Result:
    """Do ``work`` until it succeeds, fails for good, or a minute has passed."""
    begin, wait = time.monotonic(), FIRST_WAIT
    while True:
        try:
            return work()
        except (UnreadableError, ConfigError):
            raise
        except Exception as error:
            _judge(url, error)
            spent = time.monotonic() - begin
            if spent + wait > PATIENCE:
                text = " ".join(str(error).split())[:200] or type(error).__name__
                raise StorageError(
                    f"{url}: the storage failed for {spent:.0f} s, the last time with: {text}"
                ) from error
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)


def _judge(url: str, error: Exception) -> None:
    """Raise what is final; return where another try may help."""
    code = _code(error)
    text = " ".join(str(error).split())[:200]
    if code in REFUSED:
        scheme = {"s3a": "s3", "gcs": "gs"}.get(scheme_of(url), scheme_of(url))
        how = CREDENTIALS.get(scheme, "set them as its fsspec package says")
        raise StorageError(
            f"{url}: the storage does not take the credentials ({text}); {how}"
        ) from error
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        raise UnreadableError(f"cannot be read: there is no {url}") from error
    if isinstance(error, PermissionError) or status in (401, 403):
        raise UnreadableError(f"cannot be read: no permission for {url} ({text})") from error
    if isinstance(status, int) and status not in PASSING:
        raise UnreadableError(f"cannot be read: {url}: HTTP status {status}") from error
    if code in ("InvalidRange", "416"):
        raise UnreadableError(f"cannot be read: {url} is shorter than it was") from error
    if isinstance(error, (TypeError, ValueError, NotImplementedError, IsADirectoryError)):
        raise StorageError(f"{url}: {text or type(error).__name__}") from error


def _code(error: BaseException) -> str:
    """Return the storage's own name of an error, else that of the exception."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        if type(cause).__name__ in REFUSED:
            return type(cause).__name__
        cause = cause.__cause__
    return type(error).__name__


def as_data_error(where: str, error: Exception) -> DataError:
    """Turn what reading raised into what listing raises."""
    reason = error.reason if isinstance(error, UnreadableError) else str(error)
    return DataError(f"cannot list {where}: {reason}.")

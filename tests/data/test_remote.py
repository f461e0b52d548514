"""Shards in object storage: a real S3 server on loopback, behind a proxy that injects faults."""

import http.client
import io
import json
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from simmim.data.opened import UnreadableError
from simmim.data.sources import transfer
from simmim.data.sources.archive import TarReader, TarSource, ZipReader, ZipSource
from simmim.data.sources.braces import expand_braces, has_braces
from simmim.data.sources.remote import RemoteReader, RemoteSource, recognise
from simmim.data.sources.source import Entry
from simmim.data.workers import Crew
from simmim.errors import ConfigError, DataError

pytest.importorskip("s3fs", reason="needs the extra `remote`")
pytest.importorskip("moto", reason="needs a server of the S3 protocol")

SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


@dataclass
class Faults:
    """What the proxy does to requests for a part of an object, by their number."""

    plan: tuple[str, ...] = ("",)
    counts: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)
    number: int = 0

    def next(self) -> str:
        with self.lock:
            fault = self.plan[self.number % len(self.plan)]
            self.number += 1
            self.counts[fault] += 1
            return fault


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to the S3 server, except where a fault is due."""

    protocol_version = "HTTP/1.1"
    faults: Faults
    port: int

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        fault = self.faults.next() if "Range" in self.headers else ""
        if fault == "503":
            return self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
        if fault == "stall":
            time.sleep(1.2)
            self.close_connection = True
            return None
        if fault == "reset":
            linger = b"\x01\0\0\0\0\0\0\0"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            return None
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        upstream = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        upstream.request(self.command, self.path, body, dict(self.headers))
        reply = upstream.getresponse()
        data, headers = reply.read(), reply.getheaders()
        if fault == "cut":  # as told by its length, the body is whole
            return self.answer(reply.status, headers, data[: len(data) // 2])
        if fault == "torn":  # it ends before the length that it told
            return self.answer(reply.status, headers, data[: len(data) // 2], len(data))
        if self.command == "HEAD":
            return self.answer(reply.status, headers, b"", int(reply.getheader("Content-Length")))
        return self.answer(reply.status, headers, data)

    do_HEAD = do_PUT = do_POST = do_GET

    def answer(self, status: int, headers: list, data: bytes, length: int | None = None) -> None:
        self.send_response(status)
        skipped = {"content-length", "transfer-encoding", "connection", "date", "server"}
        for name, value in headers:
            if name.lower() not in skipped:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        if length is not None and self.command != "HEAD":
            self.close_connection = True


def serve(handler: Any) -> ThreadingHTTPServer:
    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that gave up

    server = Quiet(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    """Port of an S3 server, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", f"from moto.server import main; main(['-p', '{port}'])"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Three WebDataset shards of 20 photos each, with their classes, and a zip file."""
    folder = tmp_path_factory.mktemp("shards")
    files = sorted(photos.glob("*/*.jpg"))[20:80]
    for number in range(3):
        with tarfile.open(folder / f"shard-{number:03d}.tar", "w") as tar:
            for i, file in enumerate(files[20 * number : 20 * number + 20]):
                for ending, data in (("jpg", file.read_bytes()), ("cls", file.parent.name)):
                    member = tarfile.TarInfo(f"{i:05d}.{ending}")
                    content = data if isinstance(data, bytes) else data.encode()
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files[:10]:
            archive.write(file, f"{file.parent.name}/{file.name}")
    return folder


@pytest.fixture(scope="module")
def bucket(moto: int, shards: Path, photos: Path) -> str:
    """A bucket with the shards and some photos as they are."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{moto}",
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    client.create_bucket(Bucket="pictures")
    for file in shards.iterdir():
        client.upload_file(str(file), "pictures", f"train/{file.name}")
    for file in sorted(photos.glob("dress/*"))[:5]:
        client.upload_file(str(file), "pictures", f"photos/dress/{file.name}")
    client.put_object(Bucket="pictures", Key="photos/readme.txt", Body=b"no image")
    client.put_object(Bucket="pictures", Key="text/a.txt", Body=b"no image")
    client.put_object(Bucket="pictures", Key="bad/notes.tar", Body=b"no tar file" * 100)
    return "s3://pictures"


@pytest.fixture
def faults(moto: int, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Faults:
    """A proxy before the S3 server, to which the environment points; no fault by itself."""
    faults = Faults()
    server = serve(type("ThisProxy", (Proxy,), {"faults": faults, "port": moto}))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(transfer, "ANSWER", 0.6)
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(transfer, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(transfer, "PATIENCE", 20.0)
    monkeypatch.setattr(transfer, "_SYSTEMS", {})
    yield faults
    server.shutdown()


def local(shards: Path) -> TarSource:
    return TarSource(str(shards), sorted(shards.glob("*.tar")))


@pytest.mark.parametrize(
    "where", ["s3://pictures/train/shard-{000..002}.tar", "s3://pictures/train", "{}/train/"]
)
def test_remote_shards_are_listed_and_read_as_local_ones(
    where: str, faults: Faults, bucket: str, shards: Path
):
    source = recognise(where.format(bucket) if where[0] == "{" else where)
    assert source is not None
    entries = list(source.entries())
    here = local(shards)
    assert entries == list(here.entries())
    assert {entry.label for entry in entries} == {"dress", "shoes"}
    assert source.info().kind == "remote"
    assert source.info().parts == [f"{bucket}/train/shard-{i:03d}.tar" for i in range(3)]
    ours, theirs = RemoteReader(source.info()), TarReader(here.info())
    for entry in entries[::7]:
        assert ours.read(entry) == theirs.read(entry)


def test_only_headers_and_what_lies_between_close_ones_is_fetched(
    faults: Faults, bucket: str, moto: int, tmp_path: Path
):
    import s3fs

    file = tmp_path / "large.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(file, "w") as tar:
        for i in range(4):
            member = tarfile.TarInfo(f"{i}.npy")
            member.size = 3_000_000
            tar.addfile(member, io.BytesIO(rng.bytes(member.size)))
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.put_file(str(file), "pictures/large/large.tar")
    faults.number = 0
    source = RemoteSource("s3://pictures/large/large.tar")
    assert [entry.size for entry in source.entries()] == [3_000_000] * 4
    assert faults.number <= 6
    entry = list(source.entries())[2]
    assert RemoteReader(source.info()).read(entry) == file.read_bytes()[entry.at :][:3_000_000]


def test_an_index_beside_the_shards_tells_which_belong_to_it(faults: Faults, bucket: str):
    import s3fs

    system = s3fs.S3FileSystem(skip_instance_cache=True)
    for name in ("a.tar", "b.tar", "other.tar"):
        system.copy("pictures/train/shard-000.tar", f"pictures/made/{name}")
    index = {"format": 1, "shards": [{"file": "b.tar"}, {"file": "a.tar"}], "classes": ["z", "a"]}
    system.pipe_file("pictures/made/index.json", json.dumps(index).encode())
    source = RemoteSource(f"{bucket}/made")
    assert [entry.name[:6] for entry in source.entries()] == ["b.tar/"] * 20 + ["a.tar/"] * 20
    assert source.info().options["classes"] == ["z", "a"]
    index["shards"].append({"file": "c.tar"})
    system.pipe_file("pictures/made/index.json", json.dumps(index).encode())
    with pytest.raises(
        DataError, match="names 3 shards, and 1 of them are missing, such as .*c.tar"
    ):
        list(RemoteSource(f"{bucket}/made/").entries())
    system.pipe_file("pictures/made/index.json", json.dumps(index | {"format": 9}).encode())
    with pytest.raises(DataError, match="format 9"):
        list(RemoteSource(f"{bucket}/made/").entries())


@dataclass(frozen=True)
class FirstBytes:
    """Fills a row with the sum and the length of each image's bytes."""

    reader: RemoteReader | TarReader
    entries: list[Entry]

    def __call__(self, task: int, out: torch.Tensor) -> int:
        chunk = self.entries[4 * task : 4 * task + 4]
        if isinstance(self.reader, RemoteReader):
            self.reader.prefetch(chunk)
        for row, entry in enumerate(chunk):
            data = np.frombuffer(self.reader.read(entry), np.uint8)
            out[row] = torch.tensor([int(data.sum()), len(data)])
        return len(chunk)


def rows(reader: Any, entries: list[Entry], workers: int) -> torch.Tensor:
    crew = Crew(
        fill=FirstBytes(reader, entries),
        slot=(4, 2),
        dtype=torch.int64,
        workers=workers,
        ahead=2,
        timeout=60,
    )
    return torch.cat([array.clone() for array, _ in crew.run(0, len(entries) // 4)])


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_arrives_through_faults_in_forked_workers_too(
    workers: int, faults: Faults, bucket: str, shards: Path
):
    faults.plan = ("", "503", "torn", "", "reset", "cut", "", "", "503", "503", "", "") + ("",) * 12
    faults.plan = (*faults.plan, "stall")
    source = RemoteSource(f"{bucket}/train/")
    entries = list(source.entries())
    here = local(shards)
    assert entries == list(here.entries())
    # This process has asked the storage already, so its connections are there to be forked.
    assert RemoteReader(source.info()).read(entries[0])
    found = rows(RemoteReader(source.info()), entries, workers)
    assert torch.equal(found, rows(TarReader(here.info()), entries, 0))
    assert min(faults.counts[fault] for fault in ("503", "torn", "reset", "cut", "stall")) >= 1


@pytest.mark.parametrize("fault", ["503", "cut", "torn", "reset"])
def test_a_fault_that_stays_ends_with_a_clear_error_in_time(
    fault: str, faults: Faults, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    source = RemoteSource(f"{bucket}/train/")
    entries = list(source.entries())
    monkeypatch.setattr(transfer, "PATIENCE", 1.0)
    faults.plan = (fault,)
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"shard-000\.tar: the storage failed for") as caught:
        RemoteReader(source.info()).read(entries[0])
    assert time.monotonic() - begin < 4
    assert not isinstance(caught.value, UnreadableError)
    if fault == "503":
        assert "reduce your request rate" in str(caught.value)
    if fault == "cut":
        assert f"of {entries[0].size:,} bytes" in str(caught.value)
    with pytest.raises(DataError, match=r"cannot list .*the storage failed"):
        list(RemoteSource(f"{bucket}/train/shard-000.tar").entries())


def test_what_is_not_there_or_not_allowed_is_unreadable_at_once(faults: Faults, bucket: str):
    begin = time.monotonic()
    with pytest.raises(UnreadableError, match=r"there is no s3://pictures/gone.jpg"):
        transfer.read_whole(f"{bucket}/gone.jpg", 1 << 30)
    with pytest.raises(UnreadableError, match="there is no"):
        transfer.read_range(f"{bucket}/gone.tar", 0, 10)
    with pytest.raises(DataError, match=r"cannot list s3://pictures/no-\{0..3\}.tar: .*no-0.tar"):
        list(RemoteSource(f"{bucket}/no-{{0..3}}.tar").entries())
    assert time.monotonic() - begin < 5


def test_a_prefix_of_files_and_a_zip_file_are_read(
    faults: Faults, bucket: str, photos: Path, shards: Path
):
    source = RemoteSource(f"{bucket}/photos")
    entries = list(source.entries())
    files = sorted(photos.glob("dress/*"))[:5]
    assert [entry.name for entry in entries] == [f"dress/{file.name}" for file in files]
    reader = RemoteReader(source.info())
    reader.prefetch(entries[:3])
    assert [reader.read(entry) for entry in entries] == [file.read_bytes() for file in files]
    assert reader.open(entries[0]).format == "JPEG"

    source = RemoteSource(f"{bucket}/train/all.zip")
    here = ZipSource("", [shards / "all.zip"])
    entries = list(source.entries())
    assert entries == list(here.entries())
    ours, theirs = RemoteReader(source.info()), ZipReader(here.info())
    assert [ours.read(entry) for entry in entries] == [theirs.read(entry) for entry in entries]


def test_the_state_changes_with_an_object_and_not_by_itself(faults: Faults, bucket: str):
    import s3fs

    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.pipe_file("pictures/state/a.png", b"one")
    where = f"{bucket}/state/"
    before = RemoteSource(where).state()
    assert RemoteSource(where).state() == before
    system.pipe_file("pictures/state/a.png", b"two")
    assert RemoteSource(where).state() != before


def test_errors_of_listing_say_what_was_found(faults: Faults, bucket: str):
    with pytest.raises(DataError, match=r"s3://pictures/text holds no tar.*1 objects, such as a"):
        list(RemoteSource(f"{bucket}/text").entries())
    with pytest.raises(DataError, match=r"holds no tar.*found: nothing"):
        list(RemoteSource(f"{bucket}/nothing-here/").entries())
    with pytest.raises(DataError, match=r"notes.tar is not a whole tar file"):
        list(RemoteSource(f"{bucket}/bad/notes.tar").entries())
    with pytest.raises(ConfigError, match="nosuch:// is no storage"):
        list(RemoteSource("nosuch://a/b.tar").entries())


def test_missing_credentials_are_told_at_once(
    faults: Faults, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"does not take the credentials.*AWS_PROFILE"):
        list(RemoteSource(f"{bucket}/train/").entries())
    assert time.monotonic() - begin < 5


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    import fsspec

    for name in ("s3", "gs"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(transfer, "_SYSTEMS", {})
    with pytest.raises(ConfigError, match=r"pip install 'simmim\[remote\]'"):
        list(RemoteSource("s3://a/b.tar").entries())
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"pip install 'simmim\[gcs\]'"):
        list(RemoteSource("gs://a/b.tar").entries())


class Ranges(SimpleHTTPRequestHandler):
    """A web server that answers requests for a part of a file."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


def test_web_servers_with_and_without_ranges(shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "_SYSTEMS", {})
    with_ranges = serve(partial(Ranges, directory=str(shards)))
    host = f"http://127.0.0.1:{with_ranges.server_address[1]}"
    source = RemoteSource(host + "/shard-{000..002}.tar")
    here = local(shards)
    entries = list(source.entries())
    assert entries == list(here.entries())
    assert RemoteReader(source.info()).read(entries[9]) == TarReader(here.info()).read(entries[9])
    with pytest.raises(DataError, match="web servers cannot be listed; name the shards"):
        list(RemoteSource(host + "/").entries())
    with pytest.raises(DataError, match="there is no"):
        list(RemoteSource(host + "/none.tar").entries())
    with_ranges.shutdown()

    class Plain(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    without = serve(partial(Plain, directory=str(shards)))
    with pytest.raises(DataError, match="does not answer requests for a part of a file; download"):
        list(RemoteSource(f"http://127.0.0.1:{without.server_address[1]}/shard-000.tar").entries())
    without.shutdown()


def test_a_single_image_by_its_address_and_memory_files(photos: Path):
    import fsspec

    file = next(photos.glob("*/*.jpg"))
    fsspec.filesystem("memory").pipe_file("/in/a.jpg", file.read_bytes())
    source = RemoteSource("memory://in/a.jpg")
    (entry,) = source.entries()
    assert entry.name == "a.jpg"
    assert RemoteReader(source.info()).read(entry) == file.read_bytes()


def test_threads_share_a_reader(faults: Faults, bucket: str, shards: Path):
    source = RemoteSource(f"{bucket}/train/")
    entries = list(source.entries())
    reader = RemoteReader(source.info())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(reader.read, entries))
    theirs = TarReader(local(shards).info())
    assert found == [theirs.read(entry) for entry in entries]


def test_paths_are_not_urls(tmp_path: Path):
    for where in (str(tmp_path), "photos/", "file:///tmp/photos", "C:\\photos", "a:b"):
        assert recognise(where) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x-{08..11}.tar", ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]),
        ("{a,b{1,2},c}-z", ["a-z", "b1-z", "b2-z", "c-z"]),
        ("{1..3}{x,y}", ["1x", "1y", "2x", "2y", "3x", "3y"]),
        ("{10..1..4}", ["10", "6", "2"]),
        ("{-01..1}", ["-01", "000", "001"]),
        ("{a..c}", ["a", "b", "c"]),
        ("a{}b{c}{", ["a{}b{c}{"]),
        ("{,x}y", ["y", "xy"]),
    ],
)
def test_braces_expand_as_in_a_shell(text: str, words: list[str]):
    assert expand_braces(text) == words


def test_braces_that_mean_too_much_are_refused_quickly(tmp_path: Path):
    for text in ("{0..99999999999}", "{0..9999}{0..9999}", "{0..9999}" * 40):
        with pytest.raises(ConfigError, match="more than 1,000,000 files"):
            expand_braces(text)
    (tmp_path / "{a,b}").mkdir()
    assert not has_braces(str(tmp_path / "{a,b}"))
    assert has_braces(str(tmp_path / "{a,c}"))
    assert not has_braces(str(tmp_path / "plain"))


def test_an_image_is_read_whole(faults: Faults, bucket: str, photos: Path):
    source = RemoteSource(f"{bucket}/photos/")
    entries = list(source.entries())
    image = RemoteReader(source.info()).open(entries[0])
    with Image.open(min(photos.glob("dress/*"))) as expected:
        assert (image.width, image.height) == expected.size

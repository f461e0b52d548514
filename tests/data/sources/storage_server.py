"""A real S3 server on loopback, behind a proxy that injects faults, and shards in it."""

import http.client
import io
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from simmim.data.sources.archive import TarSource
from simmim.data.sources.remote import transfer

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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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

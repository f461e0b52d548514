"""What is asked of remote storage, and how it is told that it cannot be had."""

import sys
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from storage_server import Faults, local, serve

from simmim.data.formats.image_file import UnreadableError
from simmim.data.sources.archive import TarReader
from simmim.data.sources.braces import expand_braces, has_braces
from simmim.data.sources.remote import transfer
from simmim.data.sources.remote.storage import RemoteReader, RemoteSource, remote_source
from simmim.errors import ConfigError, DataError

pytest.importorskip("s3fs", reason="needs the extra `remote`")
pytest.importorskip("moto", reason="needs a server of the S3 protocol")


def test_what_is_not_there_or_not_allowed_is_unreadable_at_once(faults: Faults, bucket: str):
    begin = time.monotonic()
    with pytest.raises(UnreadableError, match=r"there is no s3://pictures/gone.jpg"):
        transfer.read_whole(f"{bucket}/gone.jpg", 1 << 30)
    with pytest.raises(UnreadableError, match="there is no"):
        transfer.read_range(f"{bucket}/gone.tar", 0, 10)
    with pytest.raises(DataError, match=r"cannot list s3://pictures/no-\{0..3\}.tar: .*no-0.tar"):
        list(RemoteSource(f"{bucket}/no-{{0..3}}.tar").entries())
    assert time.monotonic() - begin < 5


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


def test_paths_are_not_urls(tmp_path: Path):
    for where in (str(tmp_path), "photos/", "file:///tmp/photos", "C:\\photos", "a:b"):
        assert remote_source(where) is None


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

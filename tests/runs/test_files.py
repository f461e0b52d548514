import subprocess
from pathlib import Path

import pytest
from commands import call
from rich.console import Console

from simmim.errors import ConfigError
from simmim.runs.files import Log, check_can_write


def test_a_log_on_a_full_disk_stops_nothing(tmp_path: Path):
    Console(file=Log(tmp_path / "log.txt")).print("once")  # type: ignore[arg-type]
    assert (tmp_path / "log.txt").read_text() == "once\n"
    Console(file=Log(Path("/dev/full"))).print("no room")  # type: ignore[arg-type]
    Console(file=Log(tmp_path / "gone" / "log.txt")).print("no folder")  # type: ignore[arg-type]


def test_what_cannot_be_written_is_told_before(tmp_path: Path):
    check_can_write(tmp_path / "new.json")
    with pytest.raises(ConfigError, match="there is no folder"):
        check_can_write(tmp_path / "none" / "new.json")
    with pytest.raises(ConfigError, match="is a folder"):
        check_can_write(tmp_path)


def test_a_disk_that_may_not_be_written_is_told_before(full_disk: Path):
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    with pytest.raises(ConfigError, match="nothing may be written"):
        check_can_write(full_disk / "new.json")


def test_a_full_disk_at_the_end_is_one_message_and_loses_no_facts(photos: Path, full_disk: Path):
    report = full_disk / "scan.html"
    done = call("scan", photos, "--out", report, SIMMIM_CACHE=str(full_disk))
    assert done.returncode == 1
    assert "duplicates" in done.stdout
    assert "cannot be kept" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("simmim: the results cannot be written")
    assert "Traceback" not in done.stderr
    assert [file.name for file in full_disk.iterdir() if file.is_file()] == []

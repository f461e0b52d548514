import json
from pathlib import Path

import pytest

from simmim.data.loading.quarantine import Quarantine, unreadable
from simmim.errors import TrainingError


def names(count: int, start: str = "") -> list[str]:
    return [f"{start}{i}.jpg" for i in range(count)]


def test_each_bad_path_is_written_once_and_known_after_a_restart(tmp_path: Path):
    file = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(file, 0.05, names(10))
    quarantine.add("ü\n.jpg", "cut")
    quarantine.add("ü\n.jpg", "cut")
    quarantine.add("b.jpg", "empty")
    with file.open("a") as stream:
        stream.write('{"path": "torn')  # a kill in the middle of a line

    again = Quarantine(file, 0.05, names(10))
    again.add("b.jpg", "empty")
    assert again.count == quarantine.count == 2
    rows = [json.loads(line) for line in file.read_text().splitlines()[:2]]
    assert rows == [{"path": "ü\n.jpg", "reason": "cut"}, {"path": "b.jpg", "reason": "empty"}]

    again.add("c.jpg", "after the torn line")
    assert json.loads(file.read_text().splitlines()[3])["path"] == "c.jpg"


def test_processes_that_share_a_file_count_together_and_write_each_path_once(tmp_path: Path):
    first, second = (Quarantine(tmp_path / "q.jsonl", 0.05, names(10)) for _ in range(2))
    first.add("a.jpg", "cut")
    second.add("a.jpg", "cut")
    second.add("b.jpg", "cut")
    assert first.count == second.count == 2
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 2


def test_the_share_of_distinct_bad_images_is_judged_from_two_hundred_on(tmp_path: Path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.05, names(1000))
    for i in range(11):
        quarantine.add(f"{i}.jpg", "cut")
    quarantine.tried([*range(199), *range(199)])
    quarantine.check()
    quarantine.tried([199])
    with pytest.raises(TrainingError, match=r"11 of 200 .*5\.5%.*q\.jsonl.*--max-bad"):
        quarantine.check()
    quarantine.tried(range(200, 220))
    quarantine.check()  # 11 of 220 is not more than 5 %


def test_a_small_set_is_judged_once_all_were_tried():
    quarantine = Quarantine(None, 0.05, names(20))
    quarantine.add("a.jpg", "cut")
    quarantine.add("b.jpg", "cut")
    quarantine.tried(range(19))
    quarantine.check()
    quarantine.tried([19])
    with pytest.raises(TrainingError, match=r"2 of 20"):
        quarantine.check()


def test_bad_images_of_an_earlier_part_are_not_held_against_the_few_tried_since(tmp_path: Path):
    file = tmp_path / "q.jsonl"
    file.write_text("".join(f'{{"path": "{i}.jpg", "reason": "cut"}}\n' for i in range(20)))
    quarantine = Quarantine(file, 0.05, names(1000))
    quarantine.tried(range(200))
    quarantine.check()
    assert quarantine.count == 20


def test_a_file_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path):
    (tmp_path / "file").write_text("")
    quarantine = Quarantine(tmp_path / "file" / "q.jsonl", 0.05, names(10))
    quarantine.add("a.jpg", "cut")
    assert quarantine.count == 1


def test_images_that_were_read_to_measure_on_count_among_those_tried(tmp_path: Path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.05, names(40))
    quarantine.looked_at(names(10, "a"), {"a.jpg": "cut"})  # 1 of 10, but most were not tried yet
    quarantine.tried(range(40))
    quarantine.check()  # 1 of 50
    quarantine.looked_at(names(10, "b"), {"b.jpg": "cut", "a.jpg": "cut"})
    assert quarantine.count == 2
    with pytest.raises(TrainingError, match="4 of 70 images tried"):
        quarantine.looked_at(names(10, "c"), {"c.jpg": "cut", "d.jpg": "empty"})
    alone = Quarantine(None, 0.05, ())
    with pytest.raises(TrainingError, match="1 of 10 images tried"):
        alone.looked_at(names(10, "d"), {"a.jpg": "cut"})


def test_an_image_that_is_trained_and_measured_on_counts_once():
    quarantine = Quarantine(None, 0.3, names(10))
    quarantine.looked_at(names(6), {"0.jpg": "cut", "1.jpg": "cut", "2.jpg": "cut"})
    quarantine.add("7.jpg", "cut")
    quarantine.tried(range(9))
    quarantine.check()  # one was not tried yet
    quarantine.tried([9])
    with pytest.raises(TrainingError, match=r"4 of 10 images tried .*40\.0%"):
        quarantine.check()


def test_reasons_are_told_by_their_number_with_an_example():
    bad = {f"{i}.jpg": "cut" for i in range(3)} | {"x\udce9.jpg": "empty", "y": "1", "z": "2"}
    assert unreadable(bad, 1200, "images asked about") == (
        r"6 of 1,200 images asked about could not be read: 3 × cut, such as 0.jpg; "
        r"1 × empty, such as x\xe9.jpg; 1 × 1, such as y; 1 for other reasons"
    )

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from simmim.report import terminal
from simmim.report.words import count, duration, number, percent, points, printable


def pipe(encoding="utf-8"):
    return Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), width=80)


def screen():
    return Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)


def said(console):
    console.file.flush()
    file = console.file
    if isinstance(file, io.StringIO):
        return file.getvalue()
    return file.buffer.getvalue().decode(file.encoding)


DONE = "all steps done"


def row(step, **more):
    return {
        "step": step,
        "epoch": step / 100,
        "loss": 0.5,
        "lr": 1e-3,
        "images_per_s": 266.0,
    } | more


def test_the_header_fits_80_columns_and_gives_every_reason():
    console = pipe()
    chosen = [("batch", "128", "the largest power of two up to n/16 " * 4)]
    terminal.header(console, "simmim pretrain x", [("images", "3,500 (.jpg)")], chosen)
    lines = said(console).splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in said(console)
    assert {"simmim pretrain x", "found", "chosen"} <= {line.strip() for line in lines}
    assert " ".join(said(console).split()).count("largest power") == 4


def test_a_pipe_gets_a_plain_line_for_each_tenth_of_the_run():
    console = pipe()
    with terminal.Progress(console, 1000, 0, 10) as progress:
        for step in range(1, 1001):
            progress.update(row(step))
    lines = said(console).splitlines()
    assert 10 <= len(lines) <= 12
    assert not any("\x1b" in line or "\r" in line for line in lines)
    assert lines[-1].startswith("100 %  step 1000/1000  epoch 10.0/10  loss 0.5")
    assert lines[-1].endswith("all steps done")


def test_a_slow_run_on_a_pipe_speaks_each_half_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    console = pipe()
    with terminal.Progress(console, 10_000, 0, 10) as progress:
        for step in range(1, 101):
            clock[0] += 1.0
            progress.update(row(step))
    lines = said(console).splitlines()
    assert [line.split()[3] for line in lines] == [f"{step}/10000" for step in (1, 31, 61, 91)]
    assert lines[-1].endswith("2 h 45 min left")


def test_explained_detail_stays_once_it_came_and_bad_images_show_when_there_are_some():
    console = pipe()
    with terminal.Progress(console, 10) as progress:
        progress.update(row(1))
        progress.update(row(2, explained=-0.034))
        progress.update(row(3, data_wait=0.25, bad=3))
    lines = said(console).splitlines()
    assert "explained" not in lines[0]
    assert "bad" not in lines[1]
    assert "explained −3 %" in lines[2]
    assert "data wait 25 %  3 bad images" in lines[2]


def test_values_that_are_not_numbers_do_not_stop_the_display():
    console = pipe()
    with terminal.Progress(console, 10) as progress:
        progress.update(row(1, loss=float("nan"), explained=float("nan")))
        progress.update(row(2, loss=None))
    assert "loss nan" in said(console)


def test_no_time_is_estimated_from_the_start_of_the_loader(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    console = pipe()
    with terminal.Progress(console, 10, 0, 10) as progress:
        clock[0] = 60.0  # for the first step
        for step in range(1, 11):
            progress.update(row(step))
            clock[0] += 1.0
    ends = [line.rpartition("  ")[2] for line in said(console).splitlines()]
    assert ends == [*["estimating the time left"] * 5, *(f"{n} s left" for n in (4, 3, 2, 1)), DONE]


def test_a_resumed_run_estimates_from_its_own_steps(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    console = pipe()
    with terminal.Progress(console, 1000, 900, 10) as progress:
        for step in (901, 910):
            clock[0] = 10.0 * step
            progress.update(row(step))
    assert said(console).splitlines()[-1].endswith("15 min left")


def test_a_new_length_is_counted_towards(monkeypatch):
    console = pipe()
    with terminal.Progress(console, 1000, 0, 10) as progress:
        progress.update(row(1))
        progress.plan(40, 0.4)
        progress.update(row(20))
    assert "50 %  step 20/40  epoch 0.2/0.4" in said(console)


def test_absurd_numbers_stay_short():
    console = pipe()
    with terminal.Progress(console, 10) as progress:
        progress.update(row(1, loss=2.42398e22, explained=-2.1e21, lr=6.3e29))
    assert "loss 2.424e22  explained below −1,000 %  lr 6.3e29" in said(console)


def test_a_terminal_shows_live_lines_and_notes_above_them():
    console = screen()
    with terminal.Progress(console, 10, 0, 1) as progress:
        progress.update(row(5))
        progress.note("a note")
    assert "━━━" in said(console)
    assert "a note" in said(console)
    assert "\x1b[?25h" in said(console)  # the cursor is back


def test_stages_say_their_place_and_length_and_hold_a_training_loop():
    console = screen()
    steps = terminal.Steps(console, [("pretrain", 4), ("compare", 1.5)])
    with steps.stage("pretrain"), terminal.Progress(console, 2) as progress:
        progress.update(row(1))
    with steps.stage("compare") as stage:
        stage.update(0.5, "draw 1 of 2")
        stage.note("so far so good")
    text = said(console)
    assert "[1/2] pretrain  (about 4 min)" in text
    assert "[2/2] compare  (about 1 min 30 s)" in text
    assert "draw 1 of 2" in text
    assert text.count("done in") == 2


def test_a_stage_that_fails_is_not_called_done():
    console = pipe()
    steps = terminal.Steps(console, [("pretrain", 4)])

    def fail():
        with steps.stage("pretrain") as stage:
            stage.update(0.1, "working")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "10 %  working" in said(console)
    assert "done" not in said(console)


def test_names_cannot_move_the_cursor_or_be_taken_for_markup():
    console = pipe()
    with terminal.Progress(console, 10) as progress:
        progress.note("bad: [bold]\x1b[2J\udcff.jpg")
    assert said(console) == "bad: [bold]\\x1b[2J\\xff.jpg\n"


def test_a_terminal_without_unicode_gets_ascii():
    console = pipe("ascii")
    terminal.header(console, "a → b · 2 × 3", [("naïve", "…")], [])
    assert "a -> b - 2 x 3" in said(console)


def test_where_simmim_is_not_on_the_path_the_closing_lines_say_how(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    terminal.done(["report  r.html", "next:", "  simmim probe r", "  simmim embed r"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == f"  . {Path(sys.executable).with_name('activate')}"
    assert lines[4:] == ["  simmim probe r", "  simmim embed r"]


def test_closing_lines_are_not_broken(capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    path = "/a/very/long/path" * 10
    terminal.done([f"report  {path}", "next:", "  simmim probe [x]"])
    assert capsys.readouterr().out.splitlines() == [
        "",
        f"report  {path}",
        "next:",
        "  simmim probe [x]",
    ]


def test_the_terminal_needs_nothing_heavy():
    code = (
        "import sys, simmim.report.terminal\n"
        "print(*{'numpy', 'matplotlib', 'torch', 'PIL', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.6, "1 min"),
        (90, "1 min 30 s"),
        (3599, "1 h"),
        (8040, "2 h 14 min"),
        (86399, "1 d"),
        (273600, "3 d 4 h"),
        (float("inf"), "unknown time"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_numbers_in_words():
    assert [percent(0.484), percent(-0.001), percent(-0.031)] == ["48 %", "0 %", "−3 %"]
    assert [percent(-9.99), percent(-11), percent(1e9)] == [
        "−999 %",
        "below −1,000 %",
        "above 1,000 %",
    ]
    assert [percent(float("-inf")), percent(float("nan"))] == ["below −1,000 %", "not a number"]
    assert [points(0.123), points(-0.004), points(float("nan"))] == ["+12.3", "−0.4", "–"]
    assert [count(1, "image"), count(1204, "image"), count(3)] == ["1 image", "1,204 images", "3"]
    assert [number(0.41234), number(-12), number(7.8e-5)] == ["0.4123", "−12", "7.8e-5"]
    assert printable("a\tb\nc") == "a\\x09b\nc"

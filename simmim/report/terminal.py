"""What a run says on the terminal; on a pipe or in a log file the same in plain lines."""

import shlex
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from simmim.report.words import count, duration, number, percent, printable, speed

_ASCII = str.maketrans(
    {"·": "-", "━": "#", "─": ".", "×": "x", "−": "-", "…": "...", "≤": "<=", "→": "->"}
)
_BAR = 24
"""Signs of a bar."""
_PLAIN_SECONDS = 30.0
_STEADY = 5
"""Steps after the first row that an estimate of the time left takes."""


def header(
    console: Console,
    title: str,
    found: list[tuple[str, str]],
    chosen: list[tuple[str, str, str]],
) -> None:
    """Print what was found and what was chosen before a run starts.

    Args:
        console: Where to print.
        title: One line: the command and what it works on.
        found: Name and value of each fact: hardware, precision, images, channels, bit depth.
        chosen: Name, value and reason of each setting.
    """
    console.print(_text(console, title, "bold"), soft_wrap=True)
    for heading, rows in (("found", found), ("chosen", chosen)):
        if not rows:
            continue
        console.print()
        console.print(Text(heading, style="cyan"))
        console.print(Padding(_table(console, rows, "", "bold", "dim"), (0, 0, 0, 2)))
    console.print()


def facts(console: Console, rows: list[tuple[str, str]]) -> None:
    """Print names and what is known of each, a line or more each; nothing where there are none."""
    if rows:
        console.print(_table(console, rows, "", ""))


def _table(console: Console, rows: Sequence[tuple[str, ...]], *styles: str) -> Table:
    """Rows side by side, a column in each of the styles; rows may have fewer."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for _ in styles[1:]:
        table.add_column(overflow="fold")
    for row in rows:
        cells = zip(row, styles, strict=False)
        table.add_row(*(_text(console, cell, style) for cell, style in cells))
    return table


class Progress:
    """The training loop's live lines, fed with the rows of metrics.jsonl.

    On a terminal two lines are redrawn in place. Elsewhere a plain line is printed every half
    minute or tenth of the run, whichever comes first.

    Args:
        console: Where to print.
        total_steps: Steps of the whole run.
        first_step: Steps completed before this process started; 0 for a new run.
        epochs: Passes over the images in the whole run.
    """

    def __init__(
        self, console: Console, total_steps: int, first_step: int = 0, epochs: float = 0.0
    ) -> None:
        self._console = console
        self._total = max(total_steps, 1)
        self._epochs = epochs
        self._row: dict[str, float] = {"step": first_step}
        self._seen: deque[tuple[float, int]] = deque(maxlen=200)
        self._line = _LiveLine(console, self._render)
        self._ticker = _Ticker(first_step / self._total)

    def __enter__(self) -> Self:
        self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.stop()

    def update(self, row: Mapping[str, float]) -> None:
        """Show ``row``; a value that comes only now and then stays until the next one.

        Args:
            row: ``step`` and any of ``loss``, ``explained`` (a share), ``lr``, ``images_per_s``,
                ``data_wait`` (a share), ``epoch``, ``bad`` (unreadable images so far).
        """
        self._row.update(row)
        step = int(self._row["step"])
        self._seen.append((time.monotonic(), step))
        if not self._line.live and self._ticker.due(step / self._total):
            self._console.print(_text(self._console, self._plain()), soft_wrap=True)

    def plan(self, total_steps: int, epochs: float) -> None:
        """Count towards another number of steps and epochs from now on."""
        self._total, self._epochs = max(total_steps, 1), epochs

    def note(self, text: str) -> None:
        """Print ``text`` above the live lines."""
        self._console.print(_text(self._console, text), soft_wrap=True)

    def _place(self) -> tuple[float, str, str]:
        """Share done, the epoch and the time left in words."""
        step = int(self._row["step"])
        share = min(step / self._total, 1.0)
        epoch = self._row.get("epoch", share * self._epochs)
        where = f"epoch {epoch:.1f}/{self._epochs:.4g}" if self._epochs else f"step {count(step)}"
        return share, where, "all steps done" if step >= self._total else self._left(step)

    def _left(self, step: int) -> str:
        """The time left in words, from the first row on: what came before it is the start."""
        if self._seen and self._seen[-1][1] - self._seen[0][1] >= _STEADY:
            (began, first), (now, last) = self._seen[0], self._seen[-1]
            return f"{duration((now - began) / (last - first) * (self._total - step))} left"
        return "estimating the time left"

    def _facts(self) -> list[str]:
        """What the last rows said, most telling first."""
        row = self._row
        shown: list[tuple[str, Callable[[float], str]]] = [
            ("loss", lambda value: f"loss {number(value)}"),
            ("explained", lambda value: f"explained {percent(value)}"),
            ("lr", lambda value: f"lr {number(value, 2)}"),
            ("images_per_s", lambda value: f"{speed(value)} images/s"),
            ("data_wait", lambda value: f"data wait {percent(value)}"),
        ]
        facts = [say(row[name]) for name, say in shown if row.get(name) is not None]
        if row.get("bad"):
            facts.append(count(row["bad"], "bad image"))
        return facts

    def _plain(self) -> str:
        share, where, left = self._place()
        step = f"step {int(self._row['step'])}/{self._total}"
        place = f"{percent(share)}  {step}" + (f"  {where}" if self._epochs else "")
        return "  ".join([place, *self._facts(), left])

    def _render(self) -> Group:
        share, where, left = self._place()
        line = Text(f" {where} ") + _bar(share) + Text(f" {percent(share)} · {left}")
        return Group(
            _text(self._console, line), _text(self._console, " " + " · ".join(self._facts()), "dim")
        )


class Steps:
    """The stages of a longer story, such as the demo: which one runs, and how long it takes.

    Args:
        console: Where to print.
        stages: Name and expected minutes of each stage, in their order.
    """

    def __init__(self, console: Console, stages: Sequence[tuple[str, float]]) -> None:
        self._console = console
        self._minutes = dict(stages)
        self._names = [name for name, _ in stages]

    @contextmanager
    def stage(self, name: str) -> Iterator["Stage"]:
        """Announce the stage ``name``, and say how long it took once it is through.

        A training loop's ``Progress`` may run inside instead of ``Stage.update``.

        Raises:
            ValueError: ``name`` is not among the stages.
        """
        place = f"[{self._names.index(name) + 1}/{len(self._names)}]"
        expected = duration(60 * self._minutes[name])
        self._console.print(
            _text(
                self._console,
                Text(f"{place} ") + Text(printable(name), "bold") + f"  (about {expected})",
            ),
            soft_wrap=True,
        )
        stage = Stage(self._console)
        began = time.monotonic()
        try:
            yield stage
        finally:
            stage.close()
        took = duration(time.monotonic() - began)
        self._console.print(_text(self._console, f"{place} done in {took}", "green"))


class Stage:
    """Progress inside one stage; made by ``Steps.stage``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._share = 0.0
        self._words = ""
        self._began = time.monotonic()
        self._line = _LiveLine(console, self._render)
        self._ticker = _Ticker(0.0)

    def update(self, share: float, text: str = "") -> None:
        """Show that ``share`` (0 to 1) of the stage is done, and ``text``, what it does now."""
        self._share, self._words = min(max(share, 0.0), 1.0), printable(text)
        self._line.start()
        if not self._line.live and self._ticker.due(self._share):
            line = f"      {percent(self._share)}  {text}".rstrip()
            self._console.print(_text(self._console, line), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print ``text`` above the progress line."""
        self._console.print(_text(self._console, text), soft_wrap=True)

    def close(self) -> None:
        """Take the progress line away."""
        self._line.stop()

    def _render(self) -> Text:
        past = time.monotonic() - self._began
        left = f" · {duration(past / self._share * (1 - self._share))} left" if self._share else ""
        words = f" · {self._words}" if self._words else ""
        line = Text("      ") + _bar(self._share) + Text(f" {percent(self._share)}{left}{words}")
        return _text(self._console, line)


def line(console: Console, text: str, style: str = "") -> None:
    """Print one line, never broken."""
    console.print(_text(console, text, style), soft_wrap=True)


def done(lines: Sequence[str], console: Console | None = None) -> None:
    """Print the closing ``lines``: where the results are, and what one would do next.

    None is ever broken, so that a path can be copied.
    """
    console = console or Console()
    console.print()
    activate = Path(sys.executable).with_name("activate")
    lines = list(lines)
    commands = [i for i, line in enumerate(lines) if line.startswith("  simmim ")]
    if commands and activate.exists() and not shutil.which("simmim"):
        lines.insert(commands[0], f"  . {shlex.quote(str(activate))}")
    for line in lines:
        console.print(_text(console, line), soft_wrap=True)


class _LiveLine:
    """A rich ``Live`` that exists only on a terminal and may be started more than once."""

    def __init__(self, console: Console, render: Callable[[], Group | Text]) -> None:
        self.live = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(get_renderable=render, console=console, transient=False)

    def start(self) -> None:
        if self.live and not self._live.is_started:
            self._live.start(refresh=True)

    def stop(self) -> None:
        if self._live.is_started:
            self._live.stop()


class _Ticker:
    """Says when the next plain line is due: each half minute or tenth, and at the end."""

    def __init__(self, share: float) -> None:
        self._tenth = int(share * 10)
        self._last = time.monotonic()
        self._first = True

    def due(self, share: float) -> bool:
        tenth, now = int(share * 10), time.monotonic()
        if not (self._first or tenth > self._tenth or now - self._last >= _PLAIN_SECONDS):
            return False
        self._tenth, self._last, self._first = tenth, now, False
        return True


def _bar(share: float) -> Text:
    full = round(share * _BAR)
    return Text("━" * full, style="green") + Text("─" * (_BAR - full), style="dim")


def _text(console: Console, text: str | Text, style: str = "") -> Text:
    """Printable ``text`` without markup, in signs that the console's encoding has."""
    line = text.copy() if isinstance(text, Text) else Text(printable(text), style=style)
    if not console.encoding.lower().startswith("utf"):
        plain = line.plain.translate(_ASCII).encode(console.encoding, "replace")
        return Text(plain.decode(console.encoding), style=style)
    return line

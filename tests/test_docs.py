"""The documentation says what the code does: commands parse, flags exist, links resolve."""

import re
import shlex
from pathlib import Path

import pytest

from simmim.cli import finetune, pretrain
from simmim.cli.arguments import parse, split
from simmim.cli.checks import check_encoder
from simmim.cli.finetune import parse_finetune
from simmim.cli.flags import flags_of
from simmim.cli.main import COMMANDS, main
from simmim.cli.parts import all_flags
from simmim.cli.plan import parse_plan
from simmim.cli.pretrain import Resume, parse_pretrain
from simmim.cli.runs import parse_runs
from simmim.cli.study import parse_labels, parse_study
from simmim.config.commands import (
    DemoConfig,
    DoctorConfig,
    EmbedConfig,
    ExportConfig,
    HealthConfig,
    PickConfig,
    PlanConfig,
    PredictConfig,
    ProbeConfig,
    ReconstructConfig,
    ReportConfig,
    RunsBestConfig,
    VerifyConfig,
)
from simmim.config.data import BenchConfig, ScanConfig, ShardConfig
from simmim.config.finetune import FINETUNINGS
from simmim.config.launch import SlurmConfig
from simmim.config.recipes import RECIPES, mae
from simmim.config.run import PretrainConfig
from simmim.config.saved import dump
from simmim.config.studies import LABEL_STUDIES, StudyConfig
from simmim.runs.metrics import NAMES

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CONFIGS = {
    "demo": DemoConfig,
    "plan": PlanConfig,
    "probe": ProbeConfig,
    "embed": EmbedConfig,
    "predict": PredictConfig,
    "study": StudyConfig,
    "pick": PickConfig,
    "reconstruct": ReconstructConfig,
    "scan": ScanConfig,
    "shard": ShardConfig,
    "bench": BenchConfig,
    "export": ExportConfig,
    "health": HealthConfig,
    "launch": SlurmConfig,
    "runs": RunsBestConfig,
    "report": ReportConfig,
    "doctor": DoctorConfig,
    "verify": VerifyConfig,
}
BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r"…|\b(COMMAND|NAME|FILE|X)\b")
"""What stands for something in a command's pattern; DATA, RUN and IMAGES may be paths."""


def commands() -> list[tuple[str, str]]:
    """Page and words of every command line, in blocks of shell and between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text()
        lines = [line for block in SHELL.findall(text) for line in block.splitlines()]
        plain = BLOCK.sub("", text)
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", plain)]
        for line in lines:
            match = re.match(r"(?:\$ )?(?:torchrun .* -m )?simmim (.+)", line.strip())
            if match and not PLACEHOLDER.search(match[1]):
                found.append((page.name, match[1]))
    return list(dict.fromkeys(found))


def parse_launch(words: list[str]) -> None:
    own, after = words[1 : words.index("--")], words[words.index("--") + 1 :]
    parse("launch slurm", split("launch slurm", own, flags_of(SlurmConfig)), SlurmConfig)
    assert after[0] == "pretrain"
    parse_pretrain(after[1:])


PARSERS = {
    "finetune": parse_finetune,
    "labels": parse_labels,
    "plan": parse_plan,
    "runs": parse_runs,
    "launch": parse_launch,
}


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_line_parses(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(dump(mae()))
    words = shlex.split(re.split(r"\s[>|]\s", line)[0], comments=True)
    name, *rest = words
    assert name in COMMANDS, f"{page}: there is no command {name}"
    if name == "pretrain":
        request = parse_pretrain(rest)
        if not isinstance(request, Resume):
            check_encoder(request)
    elif name in PARSERS and rest:
        PARSERS[name](rest)
    elif name == "study" and rest:
        for run in parse_study(rest)[1].values():
            check_encoder(run)
    elif name in ("recipes", "models"):
        assert main(words) == 0
    elif rest:  # else the command's name alone
        config = CONFIGS[name]
        parse(name, split(name, rest, flags_of(config)), config)


def test_the_commands_of_the_docs_are_found():
    lines = [line for _, line in commands()]
    assert len(lines) > 30
    assert any(line.startswith("pretrain --resume") for line in lines)


def flags_of_command(name: str) -> set[str]:
    flags = flags_of(CONFIGS[name]) if name in CONFIGS else []
    if name == "pretrain":
        flags = [*pretrain.CHOICES, *all_flags([PretrainConfig()])]
    elif name == "finetune":
        flags = [*finetune.CHOICES, *all_flags(FINETUNINGS.values())]
    elif name == "labels":
        flags = [finetune.TASK, *all_flags(LABEL_STUDIES.values())]
    return {flag.name for flag in flags if not flag.positional}


@pytest.mark.parametrize("name", ["pretrain", "finetune", "labels", *CONFIGS])
def test_every_flag_is_documented_and_every_documented_flag_exists(name: str):
    text = (ROOT / "docs" / "commands.md").read_text()
    (section,) = re.findall(rf"^## simmim {name}\b.*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    documented = set(re.findall(r"--([a-z][a-z.-]*)", section))
    flags = flags_of_command(name)
    assert flags - documented == set()
    assert documented - flags == set()


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in slugs(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_compiles(page: Path):
    for block in PYTHON.findall(page.read_text()):
        compile(block, page.name, "exec")


ROWS = {
    "model": lambda config: f"`{config.encoder.model}`",
    "masked": lambda config: f"{config.mask.ratio:g} of",
    "loss, mean per masked value": lambda config: {"l1": "absolute", "l2": "squared"}[
        getattr(config.target, "parts", (config.target,))[0].loss
    ],
    "weight decay": lambda config: f"{config.optim.weight_decay:g}",
    "AdamW betas, eps": lambda config: "{}, {}".format(*config.optim.betas),
    "gradient norm clipped at": lambda config: str(config.optim.clip or "not clipped"),
    "drop path": lambda config: f"{config.encoder.drop_path:g}",
    "warm-up": lambda config: (
        f"{config.optim.warmup_epochs:g} epochs, at most {config.optim.warmup_share:.0%}"
    ).replace("%", " %"),
    "crop, share of the area": lambda config: (
        f"{config.augment.scale[0]:g} … {config.augment.scale[1]:g}, {config.augment.interpolation}"
    ),
    "flip": lambda config: f"{config.augment.flip:g}",
}


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_recipes_has_their_numbers(row: str):
    text = (ROOT / "docs" / "recipes.md").read_text()
    (line,) = re.findall(rf"^\| {re.escape(row)} \|(.+)\|$", text, re.MULTILINE)
    cells = [cell.strip() for cell in line.split(" | ")]
    for cell, make in zip(cells, RECIPES.values(), strict=True):
        value = re.escape(ROWS[row](make()))
        assert re.search(rf"(?<![\d.]){value}(?![\d.])", cell), cell


def test_the_columns_of_that_table_are_the_recipes():
    text = (ROOT / "docs" / "recipes.md").read_text()
    header = "| | " + " | ".join(f"`{name}`" for name in RECIPES) + " |"
    assert header in text


def test_decisions_are_short():
    for page in (ROOT / "docs" / "decisions").glob("*.md"):
        assert len(page.read_text().splitlines()) <= 40, page.name


def test_each_name_in_the_metrics_is_documented():
    text = (ROOT / "docs" / "commands.md").read_text()
    table = text.partition("### metrics.jsonl")[2].partition("###")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == {*NAMES}

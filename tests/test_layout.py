"""How the code hangs together: imports point one way, and what is light stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import simmim

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "simmim"
LAYERS = [
    {"__main__", "__init__"},  # the Python API, which imports what it needs when it is called
    {"cli"},
    {"api"},
    {"studies", "verify", "serve"},
    {"report", "tasks"},
    {"evaluate"},
    {"interop"},
    {"training"},
    {"runs"},
    {"models"},
    {"data", "targets", "extras", "masking"},
    {"tensors"},
    {"machine"},
    {"config"},
    {"errors"},
]
"""Imports point downwards, from one of these to one further down."""
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
LONGER = {"tests/models/test_encoder.py"}
"""Files over 400 lines."""
HEAVY = {"torch", "timm", "numpy", "PIL", "matplotlib", "pydantic", "sklearn", "pyarrow"}


MODULES = {
    path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""The files of the package, with their names below it."""


def part_of(module: str) -> str:
    """The folder or file of the package that a module belongs to."""
    return module.partition(".")[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def edges() -> Iterator[tuple[str, str, str]]:
    """Importing module, imported module, and where."""
    known = set(MODULES.values())
    for path, module in MODULES.items():
        for line, name in imports(path):
            root, _, full = name.partition(".")
            if root == "simmim":
                above = full.rpartition(".")[0]
                target = full if full in known else above if above in known else "__init__"
                yield module, target, f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_every_part_has_its_layer():
    assert {part_of(module) for module in MODULES.values()} <= set(RANK)


def test_imports_point_one_way():
    wrong = [
        where
        for source, target, where in edges()
        if part_of(source) != part_of(target) and RANK[part_of(target)] <= RANK[part_of(source)]
    ]
    assert wrong == []


def test_files_do_not_import_in_circles():
    below: dict[str, set[str]] = {}
    for source, target, _ in edges():
        below.setdefault(source, set()).add(target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' → '.join((*path, module))}"
        if module not in done:
            for other in below.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in list(below):
        visit(module, ())


def test_config_and_errors_import_nothing_of_ours_but_each_other():
    parts = {(part_of(source), part_of(target)) for source, target, _ in edges()}
    assert {target for source, target in parts if source == "errors"} == set()
    assert {target for source, target in parts if source == "config"} <= {"config", "errors"}


def test_two_files_know_of_processes():
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for _, name in imports(path)
        if name.startswith("torch.distributed")
    }
    assert users == {"training/parallel.py", "training/world.py"}


def test_modules_are_named_after_their_subject():
    names = {path.stem for path in PACKAGE.rglob("*")}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc", "core", "base"}


def test_files_are_short():
    folders = (PACKAGE, ROOT / "tests", ROOT / "benchmarks")
    long = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in folder.rglob("*.py")
        if len(path.read_text().splitlines()) > 400
    }
    # The table of timm's models is data.
    assert long - LONGER - {"simmim/config/models.py"} == set()


def test_what_is_exported_is_what_all_says():
    submodules = {path.stem for path in PACKAGE.iterdir()}
    public = {
        name
        for name, value in vars(simmim).items()
        if not name.startswith("_")
        and name not in submodules
        and getattr(value, "__module__", "").startswith("simmim")
    }
    assert public == set(simmim.__all__)
    assert sorted(simmim.__all__) == simmim.__all__


@pytest.mark.parametrize(
    "what", ["simmim", "simmim.cli", "simmim.config", "simmim.data.sources.places"]
)
def test_light_modules_import_nothing_heavy(what: str):
    folder = PACKAGE.parent / what.replace(".", "/")
    modules = [what]
    if what in ("simmim.cli", "simmim.config"):
        modules += [f"{what}.{path.stem}" for path in folder.glob("*.py") if path.stem[0] != "_"]
    code = f"import sys, {', '.join(modules)}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not HEAVY & set(done.stdout.split())


def test_the_version_is_said_once():
    from importlib.metadata import version

    assert version("simmim") == simmim.__version__

import json
import random
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import Forked
from torch import nn

from simmim.errors import CheckpointError, ResourceError
from simmim.runs.checkpoints import (
    Checkpoints,
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
)


def trained(width: int = 8) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    module = nn.Linear(width, width)
    groups = [{"params": list(module.parameters()), "names": ["weight", "bias"], "kind": "adamw"}]
    optimizer = torch.optim.AdamW(groups, fused=True, lr=0.1)
    module(torch.randn(4, width)).sum().backward()
    optimizer.step()
    return module, optimizer


def tensors(module: nn.Module, optimizer: torch.optim.AdamW) -> tuple[dict, dict]:
    return module.state_dict(), optimizer_tensors(optimizer)


def test_weights_and_moments_come_back_and_the_config_stays(tmp_path: Path):
    module, optimizer = trained()
    Checkpoints(tmp_path, keep=2).save(7, *tensors(module, optimizer), {"bits": {"threads": 1}})
    newest = Checkpoints(tmp_path, keep=2).newest(print)
    assert newest is not None
    assert newest.step == 7
    assert newest.state["bits"] == {"threads": 1}
    other = nn.Linear(8, 8)
    other.load_state_dict(newest.model())
    groups = [{"params": list(other.parameters()), "names": ["weight", "bias"], "kind": "adamw"}]
    fresh = torch.optim.AdamW(groups, fused=True, lr=0.03, weight_decay=0.2)
    restore_optimizer(fresh, newest.optimizer())
    assert fresh.param_groups[0]["lr"] == 0.03  # the config's, not the old run's
    assert fresh.param_groups[0]["weight_decay"] == 0.2
    for old, new in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(old, new)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[old][key], fresh.state[new][key])


def test_the_newest_stay_and_what_is_unfinished_goes(tmp_path: Path):
    module, optimizer = trained()
    (tmp_path / ".tmp-3-99").mkdir()
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save(step, *tensors(module, optimizer), {})
    assert checkpoints.newest(print).step == 10  # type: ignore[union-attr]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "state", "format"])
def test_damage_is_found_and_the_one_before_is_used(tmp_path: Path, damage: str):
    module, optimizer = trained()
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, *tensors(module, optimizer), {})
    newest = checkpoints.save(2, *tensors(module, optimizer), {})
    weights, state = newest / "model.safetensors", newest / "state.json"
    data = weights.read_bytes()
    match damage:
        case "flip":
            weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            weights.write_bytes(data[:-1])
        case "missing":
            weights.unlink()
        case "state":
            state.write_text(state.read_text()[:-9])
        case "format":
            state.write_text(json.dumps({**json.loads(state.read_text()), "format": 2}))
    notes: list[str] = []
    found = checkpoints.newest(notes.append)
    assert found is not None
    assert found.step == 1
    assert len(notes) == 1
    assert str(newest) in notes[0]


def test_a_damaged_one_is_set_aside_and_never_counts(tmp_path: Path):
    module, optimizer = trained()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, *tensors(module, optimizer), {})
    for _ in range(2):  # step 5 is damaged, made anew, and damaged again
        broken = Checkpoints(tmp_path, keep=9).save(5, *tensors(module, optimizer), {})
        (broken / "model.safetensors").write_bytes(b"")
        assert checkpoints.newest(lambda _: None).step == 1  # type: ignore[union-attr]
    aside = ["damaged-step-00000005", "damaged-step-00000005-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*aside, "step-00000001"]
    checkpoints.save(2, *tensors(module, optimizer), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [*aside, "step-00000002"]


def test_one_that_is_newer_than_the_one_just_saved_counts_for_nothing(tmp_path: Path):
    module, optimizer = trained()
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "step-00000001-mine").mkdir()  # a copy that the user made
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(step, *tensors(module, optimizer), {})
    assert checkpoints.newest(lambda _: None).step == 2  # type: ignore[union-attr]
    left = ["damaged-step-00000009", "step-00000001-mine", "step-00000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"step": 1,', '"step": 3,'),
        lambda text: text.replace('"threads": 1', '"threads": 2'),
        lambda text: text.replace('"bytes"', '"bites"'),
        lambda text: text[: text.index('"files"')] + '"x": 0}',
        lambda _: "{}",
        lambda _: "[1]",
        lambda _: "\xff",
        lambda _: "[" * 100_000,
    ],
)
def test_any_change_of_the_state_is_found(tmp_path: Path, change: Callable[[str], str]):
    module, optimizer = trained()
    state = (
        Checkpoints(tmp_path, 1).save(1, *tensors(module, optimizer), {"threads": 1}) / "state.json"
    )
    state.write_text(change(state.read_text()), encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        read_checkpoint(state.parent)


def test_a_checkpoint_belongs_to_the_step_in_its_name(tmp_path: Path):
    module, optimizer = trained()
    folder = Checkpoints(tmp_path, keep=1).save(1, *tensors(module, optimizer), {})
    folder.rename(tmp_path / "step-00000011")
    with pytest.raises(CheckpointError, match="is the checkpoint of step 1, renamed"):
        read_checkpoint(tmp_path / "step-00000011")


def test_reading_changes_nothing_and_finds_what_is_saved_meanwhile(tmp_path: Path):
    module, optimizer = trained()
    checkpoints = Checkpoints(tmp_path, keep=1)
    first = checkpoints.save(1, *tensors(module, optimizer), {})
    (first / "model.safetensors").unlink()
    (tmp_path / ".tmp-2-99").mkdir()  # another process is writing it
    passed: list[Path] = []

    def meanwhile(folder: Path, _: CheckpointError) -> None:
        passed.append(folder)
        checkpoints.save(2, *tensors(module, optimizer), {})

    assert checkpoints.read(meanwhile).step == 2  # type: ignore[union-attr]
    assert passed == [first]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-2-99", "step-00000002"]


def test_all_damaged_is_an_error_and_none_at_all_is_not(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "none", keep=1)
    assert checkpoints.newest(print) is None
    module, optimizer = trained()
    folder = checkpoints.save(1, *tensors(module, optimizer), {})
    (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint"):
        checkpoints.newest(print)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path):
    module, optimizer = trained()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, *tensors(module, optimizer), {})
    with torch.no_grad():
        module.bias[0] = float("nan")  # type: ignore[index]
    with pytest.raises(CheckpointError, match="bias"):
        checkpoints.save(2, *tensors(module, optimizer), {})
    assert checkpoints.newest(print).step == 1  # type: ignore[union-attr]


def test_a_run_folder_that_is_gone_is_not_made_anew(tmp_path: Path):
    module, optimizer = trained()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    with pytest.raises(ResourceError, match=r"step 1 could not be written .* or the folder gone"):
        checkpoints.save(1, *tensors(module, optimizer), {})
    assert list(tmp_path.iterdir()) == []


def save_beyond_the_limit(folder: Path) -> None:
    module, optimizer = trained(400)
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(1, *tensors(module, optimizer), {})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, 800_000))
    checkpoints.save(2, *tensors(module, optimizer), {})


def test_a_file_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path):
    _, errors = Forked(partial(save_beyond_the_limit, tmp_path)).communicate()
    assert "ResourceError" in errors
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert Checkpoints(tmp_path, keep=2).newest(print).step == 1  # type: ignore[union-attr]


def save_without_end(folder: Path) -> None:
    module, optimizer = trained(400)
    checkpoints = Checkpoints(folder, keep=2)
    before = checkpoints.newest(print)
    for step in range(before.step + 1 if before else 1, 10**9):
        checkpoints.save(step, *tensors(module, optimizer), {})
        print(step, flush=True)


def test_no_kill_loses_a_saved_checkpoint(tmp_path: Path):
    chance = random.Random(5)
    last = 0
    for _ in range(6):
        process = Forked(partial(save_without_end, tmp_path))
        least = chance.randrange(1, 6)
        while process.said[0].count("\n") < least:
            assert process.poll() is None, process.said
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.kill()
        saved = int(process.said[0].split()[-1])
        newest = Checkpoints(tmp_path, keep=2).newest(print)
        assert newest is not None
        assert newest.step >= saved > last
        last = saved

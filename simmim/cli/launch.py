"""``simmim launch slurm``: a training as a job of a cluster: parse, check, call."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from simmim.cli import checks, finetune
from simmim.cli.arguments import read_command, wants_help
from simmim.cli.pretrain import parse_pretrain
from simmim.cli.resume import Resume
from simmim.config.finetune import FinetuneConfig
from simmim.config.launch import SlurmConfig
from simmim.config.run import TrainingConfig
from simmim.errors import ConfigError

SLURM = """Write a script for Slurm that trains a run to its end, however often it is stopped.
  simmim launch slurm --gpus 4 --time 12:00:00 -- pretrain photos/ --out runs/big
  simmim launch slurm --nodes 2 --gpus 8 --partition gpu --submit -- pretrain --resume runs/big
  simmim launch slurm --sbatch account=lab,mem=64G -- finetune flowers/ --from runs/big

What is to be run stands after `--`. Five minutes before its time is over the run saves, the job is
queued again, and goes on; so it does after a preemption or a lost machine."""

NEEDS = "simmim launch slurm --gpus 4 -- pretrain DATA"


def launch(words: Sequence[str]) -> None:
    """``simmim launch slurm … -- pretrain DATA …``."""
    config, run, command = parse_slurm(words)
    from simmim.api.launch import run_slurm

    run_slurm(config, run, command)


def parse_slurm(words: Sequence[str]) -> tuple[SlurmConfig, Path, list[str]]:
    """What is asked for: the job, the run folder, and the words that begin the run.

    Raises:
        ConfigError: They do not say one run, or it names what is not there.
    """
    own, _, after = _cut(list(words))
    if own[:1] == ["slurm"]:
        own = own[1:]
    elif not wants_help(own):
        raise ConfigError(f"simmim launch knows Slurm alone: {NEEDS}")
    config = read_command("launch slurm", own, SlurmConfig, SLURM)
    command, *rest = after or [""]
    if command == "pretrain":
        request = parse_pretrain(rest)
    elif command == "finetune":
        request = finetune.parse_finetune(rest)
    else:
        raise ConfigError(
            f"simmim launch slurm starts pretrain or finetune, which stands after --: {NEEDS}"
        )
    if isinstance(request, Resume):
        return config, request.run, [command, *rest]
    _check(request, config.ranks)
    if request.out is not None:
        return config, request.out, [command, *rest]
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    run = Path("runs") / f"{stamp}-{request.folder_name}"
    return config, run, [command, *rest, "--out", str(run)]


def _cut(words: list[str]) -> tuple[list[str], str, list[str]]:
    if "--" not in words:
        return words, "", []
    at = words.index("--")
    return words[:at], "--", words[at + 1 :]


def _check(request: TrainingConfig, ranks: int) -> None:
    """Check what would otherwise be told when the job has waited for its turn."""
    if isinstance(request, FinetuneConfig):
        finetune.check(request)
    else:
        checks.check_pretrain(request)  # type: ignore[arg-type]
        for source in request.data:
            checks.check_images(source)
    if not request.data:
        raise ConfigError(f"no images given: {NEEDS}, where DATA is a folder of images.")
    if request.batch_size is not None and request.batch_size % ranks:
        raise ConfigError(
            f"--batch-size {request.batch_size} is no multiple of the {ranks} processes, which "
            "share it."
        )
    checks.check_new_folder(request.out)

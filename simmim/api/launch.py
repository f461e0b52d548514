"""`simmim launch slurm`: a script that trains a run to its end, attempt after attempt."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from simmim.config.launch import SlurmConfig
from simmim.errors import ConfigError, ExitStatus
from simmim.report import terminal
from simmim.runs.files import check_can_write, write_text

WARNING = 300
"""Seconds before its end at which a job is told to save; Slurm may do so a minute earlier."""

SCRIPT = """\
#!/bin/bash
# Trains {run} to its end; written by `simmim launch slurm`. Submit it by: sbatch {file}
# Stopped by its time, the job is queued again and goes on. Submitted again, it goes on, too.
{options}
cd {here} || exit
run={run}
export MASTER_ADDR MASTER_PORT
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

newest() {{ ls "$run/checkpoints" 2> /dev/null | grep '^step-' | tail -n 1; }}

words=({begin})
if [ -f "$run/config.yaml" ]; then words=({command} --resume "$run"); fi
before=$(newest)
# SIGUSR1 goes to the processes of srun alone: they save and end with {stopped}.
srun --kill-on-bad-exit=0 --cpus-per-task={cpus} {python} -m simmim "${{words[@]}}"
status=$?
if [ "$status" -eq {stopped} ]; then
    if [ "$(newest)" = "$before" ]; then
        echo "not queued again: nothing was saved in this attempt; --time is too short" >&2
    else
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"
"""


def run_slurm(config: SlurmConfig, run: Path, words: Sequence[str]) -> Path:
    """Write the script, and submit it where that is asked for; returns its path.

    Raises:
        ConfigError: There is such a file, it cannot be written, or sbatch is missing or refuses.
    """
    file = config.file or Path(f"{run.name}.sbatch")
    if file.exists():
        raise ConfigError(f"{file} exists and is not overwritten. Choose another --file.")
    check_can_write(file)
    if config.submit and shutil.which("sbatch") is None:
        raise ConfigError("--submit: there is no sbatch here. Submit from a machine that has it.")
    write_text(file, script(config, run, words, file))
    lines = [
        f"script      {file}",
        f"run         {run}",
        f"processes   {config.ranks}, on {config.nodes} × {max(1, config.gpus)}",
    ]
    if not config.submit:
        terminal.done([*lines, "submit:", f"  sbatch {shlex.quote(str(file))}"])
        return file
    done = subprocess.run(["sbatch", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{file} was written, and sbatch refused it: {done.stderr.strip()}")
    terminal.done([*lines, f"submitted   {done.stdout.strip()}"])
    return file


def script(config: SlurmConfig, run: Path, words: Sequence[str], file: Path) -> str:
    """The text of the script.

    Args:
        config: The job.
        run: The run folder.
        words: That begin the run, or go on with it, after ``simmim``.
        file: Where it is written.
    """
    options = {
        "job-name": run.name,
        "nodes": config.nodes,
        "ntasks-per-node": max(1, config.gpus),
        "cpus-per-task": config.cpus,
        "time": config.limit(),
        "requeue": True,
        "open-mode": "append",
        "signal": f"USR1@{WARNING}",
        "output": f"{run.name}-%j.out",
    }
    if config.gpus:
        options["gpus-per-node"] = config.gpus
    if config.partition is not None:
        options["partition"] = config.partition
    options |= {name.replace("_", "-"): value for name, value in config.sbatch.items()}
    return SCRIPT.format(
        run=shlex.quote(str(run)),
        file=shlex.quote(str(file)),
        options="\n".join(
            f"#SBATCH --{name}" + ("" if value is True else f"={shlex.quote(str(value))}")
            for name, value in options.items()
            if value is not False
        ),
        here=shlex.quote(str(Path.cwd())),
        begin=shlex.join(words),
        command=words[0],
        stopped=int(ExitStatus.STOPPED),
        cpus=config.cpus,
        python=shlex.quote(sys.executable),
    )

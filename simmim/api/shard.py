"""``simmim shard``: images into shards."""

import shlex
from pathlib import Path

from rich.console import Console

from simmim.api.remarks import notes
from simmim.config.data import ShardConfig
from simmim.data.shards.make import Engine, Made, local, make_shards, plan_job
from simmim.data.shards.plan import Job
from simmim.machine import pick_workers
from simmim.report import terminal
from simmim.report.words import count


def run_shard(config: ShardConfig) -> Path:
    """Make shards, or those of one part; returns their folder."""
    console = Console()
    stage = terminal.Stage(console)
    try:
        job = plan_job(config, found=lambda n: stage.update(0.0, f"{n:,} images found"))
        stage.close()
        terminal.facts(console, notes(job.listing) + [("note", note) for note in job.notes])
        made = make_shards(
            job,
            config.parts(),
            _engine(config, job),
            lambda done, of, what: stage.update(done / of if of else 1.0, what),
        )
    finally:
        stage.close()
    terminal.done(_closing(config, job, made), console)
    return config.out


def _engine(config: ShardConfig, job: Job) -> Engine:
    if config.engine == "ray":
        from simmim.data.shards.on_ray import ray_engine

        return ray_engine(config, job, config.workers)
    return local(job, pick_workers(config.workers, alone=True))


def _closing(config: ShardConfig, job: Job, made: Made) -> list[str]:
    index = made.index
    if index is None:
        return [
            f"shards      {made.shards:,} of part {config.part} are in {config.out}",
            f"missing     {made.missing:,} of other parts; the last part writes the index",
        ]
    size = sum(shard["bytes"] for shard in index["shards"])
    lines = [
        f"shards      {len(index['shards']):,} with {count(index['images'], 'image')}, "
        f"{size / 1e6:,.1f} MB, in {config.out}"
        + ("; they were there already" if made.already else "; each was read back and decoded")
    ]
    if index["classes"]:
        lines.append(f"classes     {len(index['classes']):,}")
    if index["quarantine"]:
        lines.append(
            f"unreadable  {count(index['quarantine'], 'image')}, left out, with reasons in "
            f"{config.out / 'quarantine.jsonl'}"
        )
    if index["left_out"]:
        lines.append(
            f"left out    {count(index['left_out'], 'image')} held more than the picture that is "
            "kept: further pages, planes or frames"
        )
    if job.settings.dedupe != "none":
        where = f", listed in {config.out / 'duplicates.jsonl'}" if index["duplicates"] else ""
        lines.append(f"duplicates  {index['duplicates']:,} left out{where}")
    return [*lines, "next:", f"  simmim pretrain {shlex.quote(str(config.out))}"]

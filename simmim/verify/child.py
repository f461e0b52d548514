"""A process that ``simmim verify`` starts: shares a run with another, or takes one up."""

import sys
from pathlib import Path

import torch

from simmim.training.world import join
from simmim.verify.runs import child_resumes, child_shares


def main() -> None:
    """``python -m simmim.verify.child share|resume FOLDER SEED``."""
    task, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    if task == "resume":
        child_resumes(folder, seed)
        return
    with join() as world:
        child_shares(folder, seed, world)


if __name__ == "__main__":
    main()

"""Parts of a split, such as train and val, in whose folders the classes are."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LEVELS = 4
"""Folders of a path from which parts are told."""
KINDS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("holdout", "heldout"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled", "extra"), "rest"),
    **dict.fromkeys(("fold", "split", "subset", "part", "partition", "set", "batch"), "piece"),
}
"""What a word in the name of a folder says of it."""
FILLERS = frozenset({"set", "sets", "data", "dataset", "images", "image", "imgs", "img", "split"})
"""Words in the names of parts that tell nothing."""
GLUED = re.compile(rf"({'|'.join(KINDS)})({'|'.join(FILLERS)})")
MAIN = ("train", "val", "test")


@dataclass
class Tree:
    """Folders, and how many images lie below each.

    Attributes:
        images: In it and below.
        loose: In no folder of it.
        folders: By name.
    """

    images: int = 0
    loose: int = 0
    folders: dict[str, "Tree"] = field(default_factory=dict)

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> "Tree":
        """Make one of the images in each folder, by its path; that of the root is empty."""
        root = cls()
        for path, count in counts.items():
            tree = root
            tree.images += count
            for name in path.split("/") if path else ():
                tree = tree.folders.setdefault(name, cls())
                tree.images += count
            tree.loose += count
        return root

    def below(self, path: str) -> "Tree":
        """Return the folder of a path that ends with a slash."""
        tree = self
        for name in path.split("/")[:-1]:
            tree = tree.folders[name]
        return tree

    def only(self) -> str | None:
        """The name of the one folder that all images lie in; None where there is none such."""
        return next(iter(self.folders)) if len(self.folders) == 1 and not self.loose else None


def find_parts(counts: Mapping[str, int]) -> list[str]:
    """Tell the folders that are parts of a split from those that are classes.

    They are told by their names: those of two parts are alike but for words such as train and test;
    or where their names hold such words and the same folders lie in them.

    Args:
        counts: Images in each folder, by its path of at most ``LEVELS`` names.

    Returns:
        Their paths, first those to train on; none where they may be classes.
    """
    tree, prefix = Tree.of(counts), ""
    while (name := tree.only()) is not None:
        tree, prefix = tree.folders[name], f"{prefix}{name}/"
    parts = _alike_in_name(tree) or _alike_in_folders(tree)
    order = sorted(parts, key=lambda name: ([*MAIN, "rest", "piece", ""].index(_kind(name)), name))
    return [prefix + "/".join([name, *_inner(tree.folders[name])[0]]) for name in order]


def wrapper_of(counts: Mapping[str, int]) -> str:
    """Return the path of the folder that all other folders lie in, with a slash; "" for none."""
    tree, prefix = Tree.of(counts), ""
    while (name := tree.only()) is not None and tree.folders[name].folders:
        tree, prefix = tree.folders[name], f"{prefix}{name}/"
    return prefix


def place_of(name: str, parts: Sequence[str]) -> int:
    """Return the place of the part that an image lies in, by its name; -1 where it is in none."""
    return next((i for i, part in enumerate(parts) if name.startswith(f"{part}/")), -1)


def repeated(counts: Mapping[str, int]) -> list[str]:
    """Return the names of two or more folders that lie in half of at least two first folders."""
    folders = Tree.of(counts).folders
    inner = [name for tree in folders.values() for name in tree.folders]
    often = sorted(name for name in set(inner) if inner.count(name) >= max(2, len(folders) / 2))
    return often if len(often) > 1 else []


def is_held(part: str) -> bool:
    """Tell whether nothing must be trained on a part, by its path."""
    return any(_kind(name) in ("val", "test") for name in part.split("/"))


def _alike_in_name(tree: Tree) -> list[str]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in tree.folders:
        if _kind(name) not in ("", "piece"):
            groups.setdefault(_words(name)[1], []).append(name)
    parts = []
    for words, names in groups.items():
        kinds = {_kind(name) for name in names}
        if len(names) > 1 and kinds & {*MAIN} and (not words or len(kinds) > 1):
            parts += names
    others = {name: each for name, each in tree.folders.items() if name not in parts}
    if 2 * sum(each.images for each in others.values()) > tree.images:
        return []
    first = [_inner(tree.folders[name])[1] for name in parts]
    return parts + [
        name for name in others if any(_share(_inner(others[name])[1], each) for each in first)
    ]


def _alike_in_folders(tree: Tree) -> list[str]:
    inner = {name: _inner(each)[1] for name, each in tree.folders.items()}
    for first in filter(_kind, inner):
        group = [name for name in inner if name == first or _share(inner[first], inner[name])]
        named = [name for name in group if _kind(name)]
        certain = any(_kind(name) in MAIN for name in named)
        common = set.intersection(*(inner[name] for name in group))
        if len(group) > 1 and 2 * len(named) >= len(group) and (certain or len(common) > 1):
            return group
    return []


def _inner(tree: Tree) -> tuple[list[str], set[str]]:
    """Return the names of folders that only wrap, as in `train/train/cat`, and those below."""
    chain = []
    while (name := tree.only()) is not None and _kind(name):
        chain.append(name)
        tree = tree.folders[name]
    return chain, set(tree.folders)


def _share(one: set[str], other: set[str]) -> bool:
    return bool(one and other) and 2 * len(one & other) >= min(len(one), len(other))


def _kind(name: str) -> str:
    """Return what the name of a folder says; empty where it says nothing of a split."""
    return _words(name)[0]


def _words(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the kind of part that a name tells, and its words without those that tell it."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # TrainSet
    plain = re.sub(r"(hold|held)[\W_]*out", "holdout", plain.lower())
    words = re.findall(r"[^\W\d_]+", plain)
    kinds, rest = [], []
    for word in words:
        glued = GLUED.fullmatch(word)
        word = glued[1] if glued else word
        if word in KINDS:
            kinds.append(KINDS[word])
        if word not in FILLERS and KINDS.get(word) in (None, "piece"):
            rest.append(word)
    # A training set is rather one to train on than a set.
    return min(kinds, key=lambda kind: kind == "piece", default=""), tuple(rest)

"""What a batch carries goes where it goes."""

from dataclasses import fields

import numpy as np
import torch

from simmim.tensors.batch import Batch, unpack_masks


def test_every_field_moves_and_is_cut():
    two = torch.arange(2)
    batch = Batch(
        images=torch.zeros(2, 3, 4, 4),
        t=two,
        labels=two,
        index=two,
        views=(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 2, 2)),
        maps=torch.zeros(2, 4, 4),
        boxes=torch.zeros(2, 5, 4),
        categories=torch.zeros(2, 5),
        crowd=torch.zeros(2, 5),
        valid=torch.zeros(2, 5),
        masks=torch.zeros(2, 5, 4, 1),
        captions=["a", "b"],
        frames=torch.zeros(2, 2),
    )
    assert all(getattr(batch, field.name) is not None for field in fields(Batch))
    moved = batch.to("meta")
    assert moved.captions == ["a", "b"]
    assert moved.views is not None
    tensors = [each for each in vars(moved).values() if isinstance(each, torch.Tensor)]
    assert {each.device.type for each in (*tensors, *moved.views)} == {"meta"}
    assert len(tensors) == len(fields(Batch)) - 2
    first = batch.head(1)
    assert first.captions == ["a"]
    assert first.views is not None
    assert [view.shape for view in first.views] == [(1, 3, 8, 8), (1, 3, 2, 2)]
    assert first.boxes is not None
    assert first.boxes.shape == (1, 5, 4)
    assert Batch(torch.zeros(1), two).to("cpu").captions is None


def test_masks_are_unpacked_as_numpy_packs_them():
    masks = np.random.default_rng(0).random((3, 5, 13)) < 0.5
    bits = torch.from_numpy(np.packbits(masks, axis=-1))
    assert torch.equal(unpack_masks(bits, 13), torch.from_numpy(masks).to(torch.uint8))

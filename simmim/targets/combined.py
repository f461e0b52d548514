"""Several targets beside one another."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from simmim.targets.target import T, Target
from simmim.tensors.batch import Batch
from simmim.tensors.mask import Mask
from simmim.tensors.parts import Roles, Trained


class Combined(Target):
    """Several targets, each with its columns of one prediction and its weight in the sum.

    Args:
        parts: Target and weight by name.
    """

    def __init__(self, parts: Mapping[str, tuple[Target, float]]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: target for name, (target, _) in parts.items()})
        self.weights = {name: weight for name, (_, weight) in parts.items()}
        self.columns: dict[str, slice] = {}
        self.outputs = 0
        for name, (target, _) in parts.items():
            self.columns[name] = slice(self.outputs, self.outputs + target.outputs)
            self.outputs += target.outputs
        self.layers = [layer for part in self._parts().values() for layer in part.layers]

    def compare(
        self, prediction: Tensor, batch: Batch, images: Tensor, mask: Mask
    ) -> dict[str, Tensor]:
        """The weighted sum, and of each part its scalars and its share of the gradient.

        That is the norm of the gradient of its weighted loss by its columns of the prediction, over
        the sum of these norms of all parts: a share for each image, and their mean. Without
        gradients there is none.
        """
        losses: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        total = prediction.new_zeros(())
        for name, part in self._parts().items():
            own = prediction[..., self.columns[name]]
            values = part.compare(own, batch, images, mask)
            weighted = self.weights[name] * values["loss"]
            total = total + weighted
            losses |= {f"{name}_{key}": value.detach() for key, value in values.items()}
            if own.requires_grad:
                (slope,) = torch.autograd.grad(weighted, own, retain_graph=True)
                norms[name] = slope.flatten(1).norm(dim=1)
        if norms:
            whole = torch.stack([*norms.values()]).sum(0).clamp_min(torch.finfo(total.dtype).tiny)
            losses |= {f"{name}_gradient": (norm / whole).mean() for name, norm in norms.items()}
        return {"loss": total, **losses}

    def within(self, kind: type[T]) -> tuple[T, slice] | None:
        """See ``Target``."""
        for name, part in self._parts().items():
            found = part.within(kind)
            if found is not None:
                return found[0], self.columns[name]
        return None

    def roles(self, depth: int) -> Roles:
        """Those of the parts."""
        parts = self._parts().items()
        return {f"parts.{n}.{key}": r for n, part in parts for key, r in part.roles(depth).items()}

    def after_step(self, step: int, steps: int, model: Trained) -> None:
        """See ``Part``."""
        for part in self._parts().values():
            part.after_step(step, steps, model)

    def _parts(self) -> dict[str, Target]:
        return dict(self.parts.items())  # type: ignore[arg-type]

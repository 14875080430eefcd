"""The numbers for each pixel of a grid of which each rank has a part."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from .model_split import LateTrunkSplit


class NumbersOfParts:
    """`numbers_of_pixels` of a model with a linear dense head, whose trunk gives this rank's part: those of the whole.

    Each rank projects its part, and the numbers are gathered; features are, where they are fewer.

    `whole`: the method as it was.
    """

    def __init__(self, whole: Callable[..., tuple[Tensor, Any]], split: LateTrunkSplit):
        self.whole, self.split = whole, split

    def __call__(self, projection: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        return self.whole(partial(self.project, projection), *args, **kwargs)

    def project(self, projection: Any, features: Tensor) -> Tensor:
        """(B, *part, hidden_size) -> (B, *grid, numbers)."""
        gather = self.split.entered.gather
        if projection.out_features > features.shape[-1]:
            return projection(gather(features))
        return gather(projection(features))

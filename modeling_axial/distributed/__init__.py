"""One axis of the grid split over processes, from outside of the model."""

from .shard_axis import own_slice, shard_axis, unshard_axis
from .switching import all_reduce, gather, switch

__all__ = ["all_reduce", "gather", "own_slice", "shard_axis", "switch", "unshard_axis"]

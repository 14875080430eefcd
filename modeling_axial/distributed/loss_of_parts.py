"""The loss of a grid of which each rank has a part."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from .agreement import check_agreement
from .switching import all_reduce


class LossOfParts:
    """A function of `dense_losses` over all ranks of a mesh: of a rank's part to the loss of the whole, on each.

    What the function refuses of one part is raised on all ranks, before one waits for another in vain.

    `whole`: the function as it was.
    """

    def __init__(self, whole: Callable[..., Tensor], mesh: DeviceMesh, timeout: timedelta | None):
        self.whole, self.mesh, self.timeout = whole, mesh, timeout
        self.agreed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.agreed = False
        try:
            loss = self.whole(*args, **kwargs, over_all=self.over_all)
        except ValueError as error:
            if not self.agreed:
                check_agreement([], [str(error)], self.mesh, self.timeout)  # raises
            raise
        if not self.agreed:
            raise ValueError(
                f"the loss function {getattr(self.whole, '__name__', self.whole)} makes no sums over_all, so it is not "
                "known to be that of the whole grid: use gather=True, or compute the loss from the outputs."
            )
        return loss

    def over_all(self, sums: Tensor) -> Tensor:
        """Sums over a rank's part as those over all ranks; the first comes after all that a loss refuses."""
        if not self.agreed:
            self.agreed = True  # first, as what this raises is raised on all
            check_agreement([], [], self.mesh, self.timeout)
        return all_reduce(sums, self.mesh.get_group())

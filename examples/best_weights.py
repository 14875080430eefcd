"""The best weights that a run has seen at its evaluations, which its checkpoints hold."""

import json
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import safe_open
from safetensors.torch import save_file


class BestWeights:
    """
    Keeps the weights of a model at that of its evaluations whose number is best, in main memory; of equal ones at the
    first. What is saved and loaded by `accelerator.save_state` and `load_state` from here on holds them and the number,
    in a file `best_model.safetensors`, so that a resumed run chooses as an unbroken one.

    Args:
        metric (`str`): what the number is called.
        larger_is_better (`bool`): of two numbers.

    Attributes: `value`, the best number; `chosen`, the number of that evaluation, counted from 1; `evaluations`, how
    many there were.

    Raises:
        `ValueError`: where no process has the weights as a whole.
    """

    file = "best_model.safetensors"

    def __init__(self, accelerator: Accelerator, metric: str, larger_is_better: bool):
        if accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("load_best_model_at_end keeps the weights as a whole, and FSDP splits them: leave one out")
        self.metric, self.larger_is_better = metric, larger_is_better
        self.value, self.chosen, self.evaluations = -math.inf if larger_is_better else math.inf, 0, 0
        self._weights: dict[str, torch.Tensor] = {}
        self._accelerator = accelerator
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._load)

    def see(self, value: float, model: torch.nn.Module) -> None:
        """
        Notes the number of one more evaluation, and the weights if it is the best so far. `model` may be prepared.

        Raises:
            `FloatingPointError`: for a number that is not finite.
        """
        self.evaluations += 1
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {self.metric} of evaluation {self.evaluations} is {value}; the checkpoints before it are kept"
            )
        if value > self.value if self.larger_is_better else value < self.value:
            self.value, self.chosen = value, self.evaluations
            weights = self._accelerator.unwrap_model(model).state_dict()
            self._weights = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in weights.items()}

    def put_into(self, model: torch.nn.Module) -> None:
        """Gives a model, which may be prepared, the best weights."""
        self._accelerator.unwrap_model(model).load_state_dict(self._weights)

    def told(self) -> str:
        """Which weights these are, as a clause."""
        extreme = "highest" if self.larger_is_better else "lowest"
        return (
            f"those of evaluation {self.chosen} of {self.evaluations}, with the {extreme} {self.metric} "
            f"({self.value:.4g})"
        )

    def _save(self, models: list, weights: list, folder: str) -> None:
        if self.evaluations and self._accelerator.is_main_process:
            seen = json.dumps([self.value, self.chosen, self.evaluations])
            save_file(self._weights, Path(folder) / self.file, {"seen": seen})  # one entry, as their order is random

    def _load(self, models: list, folder: str) -> None:
        path = Path(folder) / self.file
        if not path.exists():  # saved before the first evaluation
            return
        with safe_open(path, "pt") as file:
            self.value, self.chosen, self.evaluations = json.loads(file.metadata()["seen"])
            self._weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping

"""What the training examples share: exact-resume sampler, crash-safe checkpoints, metrics log, YAML recipes, ends."""

from .arguments import FixedArguments, parse_arguments
from .axis_accelerator import AxisAccelerator
from .checkpoints import find_checkpoint, load_state, lock_folder, save_state
from .metrics import MetricsLog, read_metrics, read_units
from .processes import INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE, StopRequest, end_processes, ignore_stop_signals
from .sampler import ResumableSampler, seeded_generator

__all__ = [
    "INTERRUPTED_EXIT_CODE",
    "STOPPED_EXIT_CODE",
    "AxisAccelerator",
    "FixedArguments",
    "MetricsLog",
    "ResumableSampler",
    "StopRequest",
    "end_processes",
    "find_checkpoint",
    "ignore_stop_signals",
    "load_state",
    "lock_folder",
    "parse_arguments",
    "read_metrics",
    "read_units",
    "save_state",
    "seeded_generator",
]

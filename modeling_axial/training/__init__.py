"""What the training examples share: exact-resume sampler, crash-safe checkpoints, metrics log, YAML recipes, ends."""

from .arguments import FixedArguments, parse_arguments
from .checkpoints import find_checkpoint, load_state, lock_folder, save_state
from .metrics import MetricsLog, read_metrics
from .processes import STOPPED_EXIT_CODE, StopRequest, end_processes
from .sampler import ResumableSampler, seeded_generator

__all__ = [
    "STOPPED_EXIT_CODE",
    "FixedArguments",
    "MetricsLog",
    "ResumableSampler",
    "StopRequest",
    "end_processes",
    "find_checkpoint",
    "load_state",
    "lock_folder",
    "parse_arguments",
    "read_metrics",
    "save_state",
    "seeded_generator",
]

"""What the training examples share: an exact-resume sampler, crash-safe checkpoints, a metrics log, YAML recipes."""

from .arguments import FixedArguments, parse_arguments
from .checkpoints import find_checkpoint, load_state, lock_folder, save_state
from .metrics import MetricsLog, read_metrics
from .sampler import ResumableSampler, seeded_generator

__all__ = [
    "FixedArguments",
    "MetricsLog",
    "ResumableSampler",
    "find_checkpoint",
    "load_state",
    "lock_folder",
    "parse_arguments",
    "read_metrics",
    "save_state",
    "seeded_generator",
]

"""Compiled code that is called many times with arguments of one kind, and asks once whether it is made for these."""

from collections.abc import Callable
from types import FunctionType
from typing import Any


def without_guards(function: FunctionType, compiled: Callable, arguments: dict[str, Any]) -> Callable:
    """
    What `compiled` runs for such arguments, without the guards that it looks at in each call.

    PyTorch's own ways leave guards out of all that a process compiles, or of this function for whatever arguments.
    Here they are checked now, of these arguments and of all else that they read, such as the modules of a model; until
    that changes, the code may be called with these, or others of the same types, shapes, strides and devices.

    Args:
        function: what has been compiled, `compiled = torch.compile(function)`, and called with such arguments.
        arguments: of `function`, by name.

    Returns:
        The code, or `compiled` itself where PyTorch has none that fits, as where it has given up compiling.
    """
    # PyTorch's own, imported here, so that nothing else depends on it.
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    for entry in _debug_get_cache_entry_list(function.__code__):
        if entry.guard_manager.check(arguments):
            return FunctionType(entry.code, function.__globals__, function.__name__)
    return compiled

"""Arguments of a model's forward: those that several models take are described once, those that nobody knows are
refused, and what some ask for is recorded.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import capture_outputs, maybe_install_capturing_hooks

# What transformers, its decorators and its debugger pass on.
KEYWORDS_OF_TRANSFORMERS = frozenset(TransformersKwargs.__annotations__) | {
    "return_dict",
    "use_cache",
    "debug_io",
    "debug_io_dir",
    "prune_layers",
}


def refuse_unknown_keywords(model: PreTrainedModel, keywords: Mapping[str, Any]) -> None:
    """Raises `TypeError` for keywords that are none of `model.forward` and none of transformers.

    They would vanish in its `**kwargs`: a mask under another name would be ignored without a word.
    """
    unknown = [name for name in keywords if name not in KEYWORDS_OF_TRANSFORMERS]
    if unknown:
        parameters = inspect.signature(model.forward).parameters.values()
        own = [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]
        raise TypeError(
            f"{type(model).__name__}.forward has no argument {', '.join(map(repr, unknown))}; it takes "
            f"{', '.join(own)}, and the keywords that all models of transformers take, such as output_hidden_states."
        )


# Arguments of several models, for `also_takes` below.
POSITION_ARGUMENTS = r"""
position_ids (one tensor for each axis, `(length,)` or `(batch_size, length)`, *optional*):
    Where the cells lie along the axis, in cells; see [`AxialModel`].
position_period (one number or None for each axis, *optional*):
    With `position_ids`, for periodic axes: after how many cells they begin again.
"""
TRUNK_ARGUMENTS = rf"""
pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, *pixels)`):
    One picture, clip or volume each; any size that `patch_size` divides.
attention_mask (`torch.BoolTensor` broadcastable to `(batch_size, *grid)`, *optional*):
    True (or 1) for cells to use, False for padding.
{POSITION_ARGUMENTS.strip()}
"""


def also_takes(arguments: str) -> Callable[[Callable], Callable]:
    """Puts what is said of shared arguments before the docstring of a forward, which may say otherwise of some.

    Stands below `auto_docstring`, whose own `custom_args` takes no docstring that is indented beside it.
    """

    def describe(forward: Callable) -> Callable:
        forward.__doc__ = f"{arguments.strip()}\n{inspect.cleandoc(forward.__doc__ or '')}\n"
        return forward

    return describe


def records_outputs(forward: Callable) -> Callable:
    """transformers' `capture_outputs`, whose hooks are there in time for compiled code.

    They are set when first needed, and the compiler could not trace that.
    """
    captured = capture_outputs(tie_last_hidden_states=False)(forward)

    @wraps(captured)
    def wrapper(self, *args, **kwargs):
        if torch.compiler.is_compiling() and any(
            kwargs.get(f"output_{name}", getattr(self.config, f"output_{name}")) for name in self._can_record_outputs
        ):
            _install_hooks(self)
        return captured(self, *args, **kwargs)

    return wrapper


@torch.compiler.assume_constant_result  # so that it runs, once, while the graph is made
def _install_hooks(model: PreTrainedModel) -> None:
    maybe_install_capturing_hooks(model)

"""Attention of short lines in Triton, which `attn_implementation="axial_triton"` chooses once this is imported.

Not run on a GPU yet, and never the default. Triton is of the extra `kernels`; builds of torch for CUDA bring it.
"""

from transformers import AttentionInterface

from ..attention_interfaces import LINES_AS_HEADS, ZEROS_WITHOUT_KEY

try:
    from .packed_lines import packed_attention_forward
except ModuleNotFoundError as error:
    raise ImportError("modeling_axial.kernels needs Triton: pip install 'modeling-axial[kernels]'.") from error

__all__ = ["packed_attention_forward"]

AttentionInterface.register("axial_triton", packed_attention_forward)
LINES_AS_HEADS.add(packed_attention_forward)
ZEROS_WITHOUT_KEY.add(packed_attention_forward)

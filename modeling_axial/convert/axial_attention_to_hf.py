"""Weights of the `AxialImageTransformer` of `axial_attention` -> a checkpoint folder that AutoModel opens.

    python -m modeling_axial.convert.axial_attention_to_hf weights.pt folder --heads 8

The file holds a state dict (`torch.save(transformer.state_dict(), "weights.pt")`, or safetensors). All sizes are read
off the tensors but for the number of heads, which leaves no trace in them. Files are read as plain tensors: one that
would run code on loading is refused.
"""

import argparse
import re
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..configuration_image_transformer import AxialImageTransformerConfig
from ..image_transformer import AxialImageTransformerModel


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a file of `torch.save` that holds nothing else.

    Raises:
        ValueError: if the file holds anything but a dictionary of tensors, such as a pickled module.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    advice = "save the weights alone: torch.save(transformer.state_dict(), path)"
    try:
        if path.suffix == ".safetensors":
            state_dict = safetensors.torch.load_file(path)
        else:
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # each format, and each fault in it, has its own class
        raise ValueError(f"{path} cannot be read as plain tensors and was not loaded; {advice}. ({error})") from error
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"{path} holds something else than a dictionary of tensors; {advice}.")
    return dict(state_dict)


def infer_config(
    state_dict: dict[str, torch.Tensor], heads: int, dim_heads: int | None = None
) -> AxialImageTransformerConfig:
    """The configuration that these weights were made with.

    Raises:
        ValueError: if they are not those of an `AxialImageTransformer`, or `heads` and `dim_heads` do not fit them.
    """
    queries = [name for name in state_dict if re.fullmatch(r"layers\.blocks\.\d+\..*fn\.fn\.to_q\.weight", name)]
    convolutions = [tensor for name, tensor in state_dict.items() if re.fullmatch(r"layers\..*\.1\.weight", name)]
    if not queries or not convolutions:
        raise ValueError(
            "These are not the weights of an AxialImageTransformer, which have names such as "
            f"layers.blocks.0.f.net.fn.fn.to_q.weight; there are {sorted(state_dict)[:3]} and so on."
        )
    num_axes = convolutions[0].dim() - 2
    dim_hidden, dim = state_dict[queries[0]].shape
    if heads < 1 or dim_hidden % heads or (dim_heads is not None and heads * dim_heads != dim_hidden):
        raise ValueError(
            f"heads={heads} of dim_heads={dim_heads} do not fit these weights, in which all heads of an attention "
            f"together are {dim_hidden} wide."
        )
    tables = [state_dict[name] for axis in range(num_axes) if (name := f"pos_emb.param_{axis}") in state_dict]
    return AxialImageTransformerConfig(
        num_axes=num_axes,
        hidden_size=dim,
        num_hidden_layers=len(queries) // num_axes,
        num_attention_heads=heads,
        head_dim=dim_hidden // heads,
        position_embedding_shape=[table.numel() // dim for table in tables] or None,
        reversible=".f.net." in queries[0],
    )


def convert(
    state_dict: dict[str, torch.Tensor], heads: int, dim_heads: int | None = None
) -> AxialImageTransformerModel:
    """The weights of `axial_attention` as a model of transformers, in their own dtype.

    Args:
        state_dict: of the `AxialImageTransformer` of `axial_attention`, or of ours; a prefix `module.` is taken off.
        heads, dim_heads: as the transformer was made with; `dim_heads` follows from the weights if not given.

    Raises:
        ValueError: if the weights are not those of an `AxialImageTransformer` with these heads.
    """
    state_dict = dict(state_dict)
    consume_prefix_in_state_dict_if_present(state_dict, "module.")
    config = infer_config(state_dict, heads, dim_heads)
    model = AxialImageTransformerModel(config)
    try:
        model.transformer.load_state_dict(state_dict, assign=True)
    except RuntimeError as error:
        raise ValueError(f"These weights are not whole: {error}") from error
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_axial.convert.axial_attention_to_hf",
        description="Makes a Hugging Face checkpoint of weights of axial_attention's AxialImageTransformer.",
    )
    parser.add_argument("weights", type=Path, help="state dict in a .pt (torch.save) or .safetensors file")
    parser.add_argument("output", type=Path, help="folder of the checkpoint")
    parser.add_argument("--heads", type=int, required=True, help="number of heads that the transformer was made with")
    parser.add_argument("--dim-heads", type=int, help="width of a head, to check it; it follows from the weights")
    options = parser.parse_args(arguments)
    try:
        model = convert(read_state_dict(options.weights), options.heads, options.dim_heads)
        model.save_pretrained(options.output)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(
        f"Saved {type(model).__name__} ({model.num_parameters():,} parameters, {model.dtype}) in {options.output}\n"
    )


if __name__ == "__main__":
    main()

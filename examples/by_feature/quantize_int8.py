"""
Keep the weights of all linear layers in 8 bits: `python examples/by_feature/quantize_int8.py`

Needs the extra `features`: torchao, which says on machines without CUDA that it did not load its CUDA kernels.
"""

from digits import accuracy, logits_of, open_model, read_digits
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_


def main() -> None:
    model = open_model()
    pixel_values, labels = read_digits()
    before = logits_of(model, pixel_values)

    # ---- the feature ----
    quantize_(model, Int8WeightOnlyConfig())
    # ---------------------

    after = logits_of(model, pixel_values)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    print(f"{len(linear)} linear layers in 8 bits.")
    print(f"{accuracy(before, labels):.1%} of {len(labels)} digits before, {accuracy(after, labels):.1%} after.")


if __name__ == "__main__":
    main()

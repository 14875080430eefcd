"""
Fine-tune small additions to the attention projections alone (LoRA): `python examples/by_feature/finetune_lora.py`

The model is reversible and all that comes before its first layer is frozen, so that no input of a layer needs a
gradient. Here the additions get theirs all the same.

Needs the extra `features`: peft.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from digits import accuracy, logits_of, open_model, read_digits
from peft import LoraConfig, PeftModel, get_peft_model
from tqdm.auto import tqdm

from modeling_axial import AxialConfig, AxialForImageClassification


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/digits-lora"))
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args(arguments)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    torch.manual_seed(0)
    base = reversible_model()
    pixel_values, labels = read_digits(held_out=False)
    upside_down = pixel_values.flip(-2)  # the new task

    # ---- the feature ----
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], modules_to_save=["classifier"]
    )
    model = get_peft_model(base, lora)
    # ---------------------

    model.print_trainable_parameters()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(trainable, lr=3e-3))
    model.train()
    for _ in tqdm(range(options.steps)):
        batch = torch.randint(len(labels), (64,))
        pictures, targets = upside_down[batch].to(accelerator.device), labels[batch].to(accelerator.device)
        accelerator.backward(model(pixel_values=pictures, labels=targets).loss)
        optimizer.step()
        optimizer.zero_grad()
    model = accelerator.unwrap_model(model).eval().cpu()
    model.save_pretrained(options.output_dir)

    pictures, targets = read_digits()
    opened = PeftModel.from_pretrained(reversible_model(), options.output_dir).eval()
    logits = logits_of(opened, pictures.flip(-2))
    torch.testing.assert_close(logits, logits_of(model, pictures.flip(-2)))
    start = accuracy(logits_of(reversible_model(), pictures.flip(-2)), targets)
    print(f"{accuracy(logits, targets):.1%} of {len(targets)} held-out digits upside down, {start:.1%} without LoRA.")


def reversible_model() -> AxialForImageClassification:
    """The weights of the trained digits model in a reversible one, which is another function of them."""
    trained = open_model()
    model = AxialForImageClassification(AxialConfig(**trained.config.to_diff_dict() | {"reversible": True}))
    model.load_state_dict(trained.state_dict())
    return model.eval()


if __name__ == "__main__":
    main()

"""What is said before a run and after it."""

import shlex

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from examples.run_in_words import closing_lines, model_in_words, opening_lines
from modeling_axial import AxialConfig, AxialForImageClassification

CONFIG = AxialConfig(image_size=[6, 10], patch_size=2, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)


def test_five_lines_say_what_is_to_be_done():
    model = AxialForImageClassification(CONFIG)
    size, classifier = (sum(p.numel() for p in part.parameters()) for part in (model, model.classifier))
    model.base_model.requires_grad_(False)
    names = [f"class {number}" for number in range(1000)]
    lines = opening_lines("many cats", "few cats", names, model, "7 of 32 examples each")
    said = dict(line.split(maxsplit=1) for line in lines)
    assert list(said) == ["data:", "classes:", "model:", "parameters:", "steps:"]
    assert said["data:"] == "many cats; measured on few cats" and said["steps:"] == "7 of 32 examples each"
    assert said["classes:"] == "1,000: class 0; class 1; class 2; class 3; class 4; ..."
    assert said["model:"] == "AxialForImageClassification, 3 layers of width 8, 3 x 5 patches of 2 x 2 pixels"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert classifier <= trained < size and said["parameters:"] == f"{size:,}, of which {trained:,} are trained"


def test_classes_may_be_none_or_told():
    model = AxialForImageClassification(CONFIG)
    said = [opening_lines("a", "b", classes, model, "c")[1].split(maxsplit=1)[1] for classes in ([], "up to 10")]
    assert said == ["none", "up to 10"]
    assert "trained" not in opening_lines("a", "b", [], model, "c")[3]


def test_another_model_has_a_name():
    class Other(PreTrainedModel):
        config_class = PreTrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.layer = torch.nn.Linear(2, 1)

    assert model_in_words(Other(PreTrainedConfig())) == "Other"


def test_the_end_says_where_to_look_and_a_command_that_a_shell_reads():
    lines = closing_lines("my runs/one", ["curves.png", "x.png"], "model = 1", "examples/predict.py {folder} a.png")
    assert lines[0] == "Look at my runs/one/curves.png, my runs/one/x.png. Load the model with"
    assert lines[2] == "model = 1"
    assert shlex.split(lines[-1]) == ["python", "examples/predict.py", "my runs/one", "a.png"]
    assert closing_lines("run", ["x.png"], "model = 1")[-1] == "model = 1"

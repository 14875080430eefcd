"""What transformers' own common tests ask of every vision model and backbone, where no other file here asks it already.

The list is that of transformers for ViT and DINOv3. Three things on it do not exist here: tied weights, buffers and
chunked feed-forwards. Hidden states are grids and attention maps are those of lines, as `AxialModel.forward` says.
"""

import copy
import inspect
import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from safetensors import safe_open
from torch.utils import checkpoint as torch_checkpoint
from transformers import AttentionInterface, Trainer, TrainingArguments
from transformers.distributed import DistributedConfig

from modeling_axial import (
    AxialBackbone,
    AxialConfig,
    AxialForDensePrediction,
    AxialForImageClassification,
    AxialForMaskedImageModeling,
    AxialForSemanticSegmentation,
    AxialImageProcessor,
    AxialModel,
)
from modeling_axial.attention import AxialAttentionCore, eager_attention_forward
from tests.ranks import gradient_error, held_share, run_on_ranks

DENSE_CLASSES = [AxialForSemanticSegmentation, AxialForDensePrediction, AxialForMaskedImageModeling]
CLASSES = [AxialModel, AxialForImageClassification, AxialBackbone, *DENSE_CLASSES]
VARIANTS = {
    "one stream": {},
    "two streams": {
        "reversible": True,
        "feed_forward": "gated_mlp",
        "position_embedding": "rotary",
        "dense_head": "pyramid",
    },
    "sets": {"num_inducing_points": [None, 3], "pooling": "attention", "position_embedding": "none"},
    "split heads": {
        "attention_mode": "split",
        "num_attention_heads": 4,
        "position_embedding": "rotary",
        "use_qk_norm": True,
        "layer_scale_init_value": 0.5,
        "reversible": True,
    },
}
model_classes = pytest.mark.parametrize("model_class", CLASSES)
variants = pytest.mark.parametrize("variant", VARIANTS)


def make_config(variant="one stream", **overrides):
    options = {"image_size": [10, 6], "patch_size": 2, "num_channels": 1, "hidden_size": 8, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 2, "num_labels": 3, "initializer_range": 0.5, "out_indices": [0, 1, 2]}
    return AxialConfig(**options | VARIANTS[variant] | overrides)


def make_model(model_class, variant="one stream", **overrides):
    torch.manual_seed(0)
    return model_class(make_config(variant, **overrides)).eval()


def pixels(batch=2, dtype=torch.float32):
    return torch.randn(batch, 1, 10, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def tensors_of(output):
    """All tensors of a model's output, in order."""
    flat = []
    for value in output.to_tuple() if hasattr(output, "to_tuple") else output:
        flat += tensors_of(value) if isinstance(value, tuple) else [value]
    return flat


def assert_same(ours, expected, **tolerance):
    """Equal tensors, to the last bit unless `tolerance` says otherwise."""
    ours, expected = tensors_of(ours), tensors_of(expected)
    assert len(ours) == len(expected) > 0
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance or {"rtol": 0, "atol": 0})


def loss_of(output):
    return sum(tensor.float().square().sum() for tensor in tensors_of(output))


def gradients(model, pixel_values):
    model.zero_grad()
    torch.manual_seed(2)
    loss_of(model(pixel_values)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# ---- forward ----


@variants
@model_classes
def test_eval_is_deterministic_and_rows_do_not_know_each_other(model_class, variant):
    model = make_model(model_class, variant, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).double()
    pixel_values = pixels(3, torch.float64)  # norms over few channels blow up the rounding of float32
    together = model(pixel_values)
    assert_same(model(pixel_values), together)
    for row in range(3):
        alone = model(pixel_values[row : row + 1])
        for one, all_rows in zip(tensors_of(alone), tensors_of(together), strict=True):
            torch.testing.assert_close(one[0], all_rows[row], rtol=1e-11, atol=1e-11)
    model.train()
    with pytest.raises(AssertionError):  # dropout is at work
        assert_same(model(pixel_values), model(pixel_values))


@variants
@model_classes
def test_tuple_and_dictionary_hold_the_same(model_class, variant):
    model = make_model(model_class, variant)
    asked = {"output_hidden_states": True, "output_attentions": True}
    output = model(pixels(), **asked)
    as_tuple = model(pixels(), **asked, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(output)
    assert_same(as_tuple, output)
    assert list(output)[-2:] == ["hidden_states", "attentions"] and len(output.hidden_states) == 3
    configured = make_model(model_class, variant, output_hidden_states=True, output_attentions=True)
    assert_same(configured(pixels()), output)
    assert next(iter(inspect.signature(model.forward).parameters)) == model.main_input_name == "pixel_values"


@model_classes
def test_chosen_states_alone_are_kept(model_class):
    model = make_model(model_class)
    every = model(pixels(), output_hidden_states=True).hidden_states
    first, middle, last = model(pixels(), output_hidden_states=[0, -1]).hidden_states
    assert middle is None
    assert_same((first, last), (every[0], every[2]))


@variants
@model_classes
def test_first_state_and_maps_retain_gradients(model_class, variant):
    model = make_model(model_class, variant).train()
    output = model(pixels(), output_hidden_states=True, output_attentions=True)
    kept = [output.hidden_states[0], *output.attentions]
    for tensor in kept:
        tensor.retain_grad()
    first = output[0][-1] if isinstance(output[0], tuple) else output[0]
    first.square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in kept)


@model_classes
def test_embeddings_and_config_are_where_transformers_looks(model_class):
    model = make_model(model_class)
    embeddings = model.get_input_embeddings()
    assert embeddings is model.base_model.embeddings.patch_embeddings and model.get_output_embeddings() is None
    model.set_input_embeddings(replacement := copy.deepcopy(embeddings))
    assert model.base_model.embeddings.patch_embeddings is replacement
    assert all(module.config is model.config for module in model.modules() if hasattr(module, "config"))
    twin = copy.deepcopy(model)
    assert_same(twin(pixels()), model(pixels()))
    assert twin.base_model.layers[0] is not model.base_model.layers[0]


@variants
@model_classes
def test_nothing_but_parameters_and_none_of_them_tied(model_class, variant):
    with torch.device("meta"):
        model = model_class(make_config(variant))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not list(model.buffers()) and not model.all_tied_weights_keys
    for module in model.modules():
        assert not [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]


# ---- loading and saving ----


@variants
@model_classes
def test_weights_are_saved_as_they_are(model_class, variant, tmp_path):
    model = make_model(model_class, variant)
    weight = model.base_model.layers[0].get_submodule("attention.axes.0.o_proj").weight
    weight.data = weight.data.T.contiguous().T
    assert not weight.is_contiguous()
    model.save_pretrained(tmp_path / "one file")
    with safe_open(tmp_path / "one file" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict()) and file.metadata()["format"] == "pt"
    model.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("generation_config.json"))
    for folder in ("one file", "shards"):
        loaded, info = model_class.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(info.values())
        assert_same(loaded.state_dict().values(), model.state_dict().values())
        assert_same(loaded(pixels()), model(pixels()), rtol=1e-4, atol=1e-4)
    given = model_class.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert_same(given.state_dict().values(), model.state_dict().values())


@variants
@model_classes
def test_missing_weights_are_drawn_as_in_a_new_model(model_class, variant):
    new = make_model(model_class, variant, hidden_size=32)
    loaded = model_class.from_pretrained(None, config=new.config, state_dict={})
    for (name, ours), expected in zip(loaded.named_parameters(), new.parameters(), strict=True):
        if expected.std(correction=0) == 0:  # biases and norms
            assert torch.equal(ours, expected), name
        else:
            assert 0.5 < ours.std() / expected.std() < 2 and abs(ours.mean()) < 2 / ours.numel() ** 0.5, name


def test_mismatched_shapes_are_drawn_anew(tmp_path):
    make_model(AxialForImageClassification).save_pretrained(tmp_path)
    changed = {"image_size": [14, 6], "num_labels": 5}
    with pytest.raises(RuntimeError, match="size"):
        AxialForImageClassification.from_pretrained(tmp_path, **changed)
    model, info = AxialForImageClassification.from_pretrained(
        tmp_path, **changed, ignore_mismatched_sizes=True, output_loading_info=True, initializer_range=0.01
    )
    names = {"axial.embeddings.position_embeddings.axis_0", "classifier.weight", "classifier.bias"}
    assert {name for name, *_ in info["mismatched_keys"]} == names
    assert 0 < model.classifier.weight.abs().max() < 0.05 and not model.classifier.bias.any()
    assert 0 < model.axial.embeddings.position_embeddings.axis_0.abs().max() < 0.05
    assert model(torch.randn(2, 1, 14, 6), labels=torch.tensor([0, 4])).logits.shape == (2, 5)


@variants
@model_classes
def test_loading_under_a_default_device(model_class, variant, tmp_path):
    model = make_model(model_class, variant)
    model.save_pretrained(tmp_path)
    with torch.device("cpu"):
        loaded = model_class.from_pretrained(tmp_path)
    assert_same(loaded(pixels()), model(pixels()), rtol=1e-4, atol=1e-4)
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device"):
        model_class.from_pretrained(tmp_path)


@model_classes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model_class, dtype, tmp_path):
    model = make_model(model_class)
    model.save_pretrained(tmp_path / "whole")
    for name in ("dtype", "torch_dtype"):
        half = model_class.from_pretrained(tmp_path / "whole", **{name: dtype})
        assert {parameter.dtype for parameter in half.parameters()} == {dtype} and half.config.dtype == dtype
    output = half(pixels())  # pixels may stay in float32
    assert {tensor.dtype for tensor in tensors_of(output)} == {dtype}
    for ours, expected in zip(tensors_of(output), tensors_of(model(pixels())), strict=True):
        torch.testing.assert_close(ours.float(), expected, rtol=0.1, atol=0.3)
    half.save_pretrained(tmp_path / "half")
    assert model_class.from_pretrained(tmp_path / "half").dtype == dtype  # as stored
    assert model_class.from_pretrained(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


@model_classes
def test_placement_on_devices_and_disk(model_class, tmp_path):
    model = make_model(model_class, "two streams", num_hidden_layers=4, out_indices=[0, 4])
    model.save_pretrained(tmp_path)
    placed = model_class.from_pretrained(tmp_path, device_map="auto")
    assert_same(placed(pixels()), model(pixels()))

    layers = "layers" if model_class is AxialModel else "axial.layers"
    size = sum(parameter.nbytes for parameter in model.parameters())
    kept = {"max_memory": {"cpu": int(0.7 * size)}, "offload_folder": tmp_path / "offload"}
    offloaded = model_class.from_pretrained(tmp_path, device_map="auto", **kept)
    places = [offloaded.hf_device_map[f"{layers}.{layer}"] for layer in range(4)]  # a layer is never torn apart
    assert places[0] == "cpu" and places[3] == "disk"
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"cpu", "meta"}
    assert_same(offloaded(pixels()), model(pixels()))

    with init_empty_weights():
        empty = model_class(model.config)
    loaded = load_checkpoint_and_dispatch(empty, str(tmp_path / "model.safetensors"), device_map="auto")
    assert_same(loaded.eval()(pixels()), model(pixels()))


# ---- attention backends ----


@model_classes
def test_backend_is_chosen_at_load_and_changed_at_run_time(model_class, tmp_path, monkeypatch):
    model = make_model(model_class)
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    eager = model_class.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager" and not (tmp_path / "config.json").read_text().count("eager")
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments[0])
        return eager_attention_forward(*arguments, **options)

    monkeypatch.setattr("modeling_axial.attention.eager_attention_forward", counted)
    assert_same(eager(pixels()), model(pixels()), rtol=1e-4, atol=1e-4)
    cores = sum(isinstance(module, AxialAttentionCore) for module in model.modules())
    assert len(calls) == cores == 4
    AttentionInterface.register("counted", counted)
    for name, expected in (("counted", 4), ("sdpa", 0), ("eager", 4)):
        calls.clear()
        model.set_attn_implementation(name)
        model(pixels())
        assert len(calls) == expected and model.base_model.config._attn_implementation == name
    with pytest.raises((ValueError, ImportError)):
        model.set_attn_implementation("no such attention")


# ---- gradient checkpointing ----

FORMS = [  # but for `offload=True`, which needs the pinned memory of an accelerator
    {},
    {"activation_checkpointing_kwargs": {"use_reentrant": True}},
    {"activation_checkpointing_kwargs": {"use_reentrant": False}},
    {"every_n_layers": 2},
]


@variants
@model_classes
def test_gradient_checkpointing_in_all_forms(model_class, variant, monkeypatch):
    model = make_model(model_class, variant, hidden_dropout_prob=0.2).double().train()
    expected = gradients(model, pixels().double())
    layers = model.base_model.layers
    ran, run = [], torch_checkpoint.checkpoint

    def counted(*arguments, **options):
        ran.append(options.get("use_reentrant"))
        return run(*arguments, **options)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    for form in FORMS:
        ran.clear()
        model.activation_checkpointing_enable(**form)
        assert model.is_activation_checkpointing
        for name, gradient in gradients(model, pixels().double()).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-7)
        asked = form.get("activation_checkpointing_kwargs", {"use_reentrant": False})
        assert ran == [asked["use_reentrant"]] * (len(layers) // form.get("every_n_layers", 1))
        ran.clear()
        model.eval()(pixels().double())
        assert not ran
        model.train().activation_checkpointing_disable()
        assert not model.is_activation_checkpointing and not any(layer.gradient_checkpointing for layer in layers)
    with pytest.warns(FutureWarning, match="activation_checkpointing_enable"):  # the name before, in use everywhere
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    gradients(model, pixels().double())
    assert ran == [True] * len(layers)


@pytest.mark.parametrize("use_reentrant", [True, False])
@variants
def test_gradient_checkpointing_of_a_frozen_trunk(variant, use_reentrant):
    """As adapters are trained: the pixels' embedding is frozen, and asked to require gradients all the same."""
    model = make_model(AxialForImageClassification, variant).train()
    model.requires_grad_(False)
    trained = model.axial.layers[0].get_submodule("attention.axes.0.o_proj").requires_grad_(True)
    expected = gradients(model, pixels())["axial.layers.0.attention.axes.0.o_proj.weight"]
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    gradients(model, pixels())
    assert expected.abs().sum() > 0
    torch.testing.assert_close(trained.weight.grad, expected, rtol=1e-4, atol=1e-4)
    model.disable_input_require_grads()


# ---- image processor ----


def test_image_processor_keywords():
    processor = AxialImageProcessor(size={"height": 5, "width": 7}, num_channels=1)
    again = AxialImageProcessor.from_dict(processor.to_dict(), size=42, image_mean=0.1)
    assert dict(again.size) == {"height": 42, "width": 42} and again.image_mean == 0.1 and again.num_channels == 1
    stored = json.loads(processor.to_json_string())
    assert stored["size"] == {"height": 5, "width": 7} and stored["num_channels"] == 1
    picture = torch.zeros(3, 11, 13, dtype=torch.uint8)
    for pictures, count in ((picture, 1), ([picture, picture], 2), (torch.stack([picture] * 3), 3)):
        assert processor(pictures, return_tensors="pt").pixel_values.shape == (count, 1, 5, 7)
        assert processor.preprocess(pictures, return_tensors="np").pixel_values.shape == (count, 1, 5, 7)
    inputs = processor(picture, return_tensors="pt")
    assert inputs.to("cpu", torch.bfloat16).pixel_values.dtype == torch.bfloat16


# ---- several processes ----


@variants
def test_parallel_plans_name_what_is_there(variant):
    model = make_model(AxialForImageClassification, variant)
    modules = {name for name, module in model.named_modules()}
    assert len(model.tp_plan) >= 6 and len(model.fsdp_plan) == 3
    for plan in (model.tp_plan, model.fsdp_plan):
        for pattern in plan:
            depth = pattern.count(".")
            assert any(
                name.count(".") == depth
                and all(ours in ("*", theirs) for ours, theirs in zip(pattern.split("."), name.split("."), strict=True))
                for name in modules
            ), pattern


SPLIT = ["two streams", "sets", "split heads"]
SPLITS = {"fsdp": {"fsdp_size": 2}, "tp": {"tp_size": 2, "tp_plan": "auto"}}


def examples():
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(12, 1, 10, 6, generator=generator)
    return {"pixel_values": pixel_values, "labels": torch.randint(3, (12,), generator=generator)}


def split_and_whole(folder, again, options):
    """A model that is split over the ranks, against the same model whole; saved again, too."""
    load = AxialForImageClassification.from_pretrained
    plain = load(folder, dtype=torch.float64).train()
    split = load(folder, dtype=torch.float64, distributed_config=DistributedConfig(**options)).train()
    batch = examples()
    losses = [model(batch["pixel_values"].double(), labels=batch["labels"]).loss for model in (plain, split)]
    for loss in losses:
        loss.backward()
    found = {"held": held_share(split), "gradient": gradient_error(split, plain)}
    split.save_pretrained(again)
    dist.barrier()
    saved = load(again).state_dict()
    return found | {
        "loss": abs(losses[0].item() - losses[1].item()),
        "saved": all(torch.equal(saved[name], tensor) for name, tensor in plain.state_dict().items()),
    }


def train(model_folder, folder, batch_size, resume=None):
    arguments = TrainingArguments(
        folder, max_steps=6, per_device_train_batch_size=batch_size, save_steps=4, logging_steps=1, seed=5,
        use_cpu=True, report_to="none", disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    model = AxialForImageClassification.from_pretrained(model_folder)
    batch = examples()
    dataset = [{name: values[index] for name, values in batch.items()} for index in range(12)]
    trainer = Trainer(model, arguments, train_dataset=dataset)
    trainer.train(resume_from_checkpoint=resume)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def trained(folder, name, batch_size):
    """Six steps, and the last two of them again from the checkpoint of the fourth."""
    model_folder, once, again = folder / "two streams", folder / f"{name} once", folder / f"{name} again"
    losses, weights = train(model_folder, once, batch_size)
    repeated, resumed = train(model_folder, again, batch_size, once / "checkpoint-4")
    same = all(torch.equal(resumed[key], tensor) for key, tensor in weights.items())
    return {"losses": losses, "resumed": repeated, "same": same}


def split_and_trained(folder):
    folder, found = Path(folder), {}
    for variant, split in itertools.product(SPLIT, SPLITS):
        name = f"{split} {variant}"
        found[name] = split_and_whole(folder / variant, folder / name, SPLITS[split])
        dist.barrier()
    return found | {"trainer": trained(folder, "two ranks", 2)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks has found, by the name of the case, and what this process has by itself."""
    folder = tmp_path_factory.mktemp("ranks")
    for variant in SPLIT:
        make_model(AxialForImageClassification, variant).save_pretrained(folder / variant)
    alone = {"trainer alone": trained(folder, "one rank", 4)}
    return [found | alone for found in run_on_ranks(split_and_trained, folder)]


@pytest.mark.distributed
@pytest.mark.parametrize("split", ["fsdp", "tp"])
@pytest.mark.parametrize("variant", SPLIT)
def test_model_split_over_two_ranks(ranks, split, variant):
    for found in ranks:
        result = found[f"{split} {variant}"]
        assert result["held"] == pytest.approx(0.5, abs=0.02) if split == "fsdp" else 0.3 < result["held"] < 0.5
        assert result["loss"] < 1e-12 and result["gradient"] < 1e-12 and result["saved"]


@pytest.mark.distributed
def test_trainer_resumes_on_one_rank_and_on_two(ranks):
    alone, both = ranks[0]["trainer alone"], [found["trainer"] for found in ranks]
    for found in (alone, *both):
        assert found["same"] and len(found["losses"]) == 6
        assert found["resumed"] == found["losses"] and found["losses"][-1] < found["losses"][0]
    # The global batches are the same, and so are the steps.
    assert both[0]["losses"] == pytest.approx(alone["losses"], rel=1e-4)


def assert_accumulated_step_is_that_of_one_batch(model, labels, folder):
    """Batches of 3, 3, 3 and 2 in `Trainer`, against one of 11."""
    pixel_values = pixels(11, torch.float64)
    loss = model(pixel_values, labels=labels).loss
    loss.backward()
    expected = {name: parameter.detach() - parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    arguments = TrainingArguments(
        folder,
        max_steps=1,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=4,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    examples = [{"pixel_values": x, "labels": y} for x, y in zip(pixel_values, labels, strict=True)]
    trainer = Trainer(model, arguments, train_dataset=examples)
    trainer.train()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=1e-12)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    "labels",
    [
        torch.arange(11) % 3,
        torch.linspace(0, 1, 33).reshape(11, 3).round(),
        torch.linspace(-2, 5, 11),
        torch.linspace(-2, 5, 33).reshape(11, 3),
    ],
    ids=["single label", "multiple labels", "regression", "regression of three"],
)
def test_trainer_accumulates_to_the_step_of_one_batch(labels, tmp_path):
    """Each example with the same weight, as in transformers' loss for single labels."""
    kind = {"problem_type": "regression"} if labels.min() < 0 else {}
    model = make_model(AxialForImageClassification, num_labels=labels[0].numel() if kind else 3, **kind).double()
    labels = labels.double() if labels.is_floating_point() else labels
    assert_accumulated_step_is_that_of_one_batch(model, labels, tmp_path)


@pytest.mark.parametrize("overrides", [{}, {"dense_head": "pyramid", "reversible": True}], ids=str)
def test_trainer_accumulates_dense_losses_to_the_step_of_one_batch(overrides, tmp_path):
    """With each pixel of the same weight that is not -100, or none at all in some of the batches."""
    classes = torch.arange(11 * 60).view(11, 10, 6) % 4
    classes = classes.where(classes != 3, -100)
    classes[3:6] = -100
    model = make_model(AxialForSemanticSegmentation, **overrides).double()
    assert_accumulated_step_is_that_of_one_batch(model, classes, tmp_path / "classes")
    numbers = torch.linspace(-2, 5, 11 * 60, dtype=torch.float64).view(11, 1, 10, 6)
    for kind in ("squared", "quantile"):
        model = make_model(AxialForDensePrediction, prediction_loss=kind, **overrides).double()
        assert_accumulated_step_is_that_of_one_batch(model, numbers, tmp_path / kind)

"""A checkpoint carries its code: it opens, and is saved and opened again, where this package was never installed.

Each load is a process of its own (`run_python`: no package, no network, its own module cache), because transformers
keeps remote classes per process and would let one load pass on the other's account. What the strangers compute is
compared bit for bit with what this process, which has the package, computed before saving.
"""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_axial import (
    AxialConfig,
    AxialForDensePrediction,
    AxialForImageClassification,
    AxialForMaskedImageModeling,
    AxialForSemanticSegmentation,
    AxialModel,
)
from modeling_axial import modeling_axial as modeling_file
from modeling_axial.grid_processing_axial import AxialGridProcessor
from modeling_axial.image_processing_axial import AxialImageProcessor
from modeling_axial.video_processing_axial import AxialVideoProcessor
from tests import ranks

HEAD = "AutoModelForImageClassification"
# The code that a model brings along: its own file, and those that transformers finds by following relative imports.
CLOSED_SET = [Path(path) for path in {modeling_file.__file__, *get_relative_import_files(modeling_file.__file__)}]

CONFIGS = {
    "plane": {"image_size": [10, 9], "patch_size": [2, 3]},
    "volume": {
        "image_size": [4, 10, 9],
        "patch_size": [2, 2, 3],
        "attention_mode": "sum",
        "feed_forward": "convolution",
        "position_embedding": "rotary",
        "reversible": True,
    },
    "circle": {
        "image_size": [10, 9],
        "patch_size": [2, 3],
        "attention_mode": "alternating",
        "attention_window": [1, None],
        "periodic": [False, True],
        "position_embedding": ["learned+relative", "rotary+relative"],
    },
}

# Loads a checkpoint, compares it with tensors kept in a file, and saves it again if it is told where.
LOAD = """
import sys
import torch
import transformers
from safetensors.torch import load_file

folder, auto_class, tensors, missing_keys, *again = sys.argv[1:]
tensors = load_file(tensors)
model, info = getattr(transformers, auto_class).from_pretrained(
    folder, trust_remote_code=True, output_loading_info=True
)
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert sorted(info["missing_keys"]) == missing_keys.split(), info
with torch.no_grad():
    grid = model.base_model(tensors["pixel_values"]).last_hidden_state
    assert torch.equal(grid, tensors["last_hidden_state"])
    if auto_class != "AutoModel":
        logits = next(iter(model(tensors["pixel_values"]).values()))
        assert logits.isfinite().all() if missing_keys else torch.equal(logits, tensors["logits"])
for folder in again:
    model.save_pretrained(folder)
print("equal")
"""
NEW_HEAD = "classifier.bias classifier.weight"


def make_config(**options):
    return AxialConfig(
        num_channels=3,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=3,
        initializer_range=0.5,  # large enough that every part shows in the output
        **options,
    )


def save(model, folder):
    """Saves a checkpoint, moves it under another name, and keeps beside it what it computes: (checkpoint, tensors)."""
    model.eval()
    generator = torch.Generator().manual_seed(1)
    tensors = {"pixel_values": torch.randn(2, 3, *model.config.image_shape, generator=generator)}
    with torch.no_grad():
        tensors["last_hidden_state"] = model.base_model(tensors["pixel_values"]).last_hidden_state
        if not isinstance(model, AxialModel):
            tensors["logits"] = next(iter(model(tensors["pixel_values"]).values())).contiguous()
    save_file(tensors, folder / "tensors.safetensors")
    model.save_pretrained(folder / "saved")
    return (folder / "saved").rename(folder / "moved"), folder / "tensors.safetensors"


@pytest.fixture(scope="module", params=["plane", pytest.param("volume", marks=pytest.mark.audit)])
def head_checkpoint(request, tmp_path_factory):
    torch.manual_seed(0)
    model = AxialForImageClassification(make_config(**CONFIGS[request.param]))
    return save(model, tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="module")
def base_checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    return save(AxialModel(make_config(**CONFIGS["plane"])), tmp_path_factory.mktemp("base"))


def assert_whole(folder):
    """The folder holds the closed set, unchanged and no other code, and names a class in it for every Auto class."""
    assert {path.name for path in folder.glob("*.py")} == {path.name for path in CLOSED_SET}
    assert not [path for path in folder.iterdir() if path.is_dir()]
    for path in CLOSED_SET:
        assert (folder / path.name).read_bytes() == path.read_bytes()
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map == AxialModel.code_auto_map and {"AutoBackbone", "AutoConfig", "AutoModel", HEAD} < set(auto_map)
    for reference in auto_map.values():
        module, name = reference.split(".")
        tree = ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_closed_set_is_what_a_model_needs():
    assert {
        "configuration_axial.py",
        "patch_embeddings.py",
        "position_embeddings.py",
        "attention.py",
        "feed_forward.py",
        "axial_layer.py",
        "reversible.py",
        "modeling_axial.py",
        "modeling_axial_heads.py",
        "modeling_axial_dense.py",
        "image_processing_axial.py",
        "grid_processing_axial.py",
        "video_processing_axial.py",
    } <= {path.name for path in CLOSED_SET}
    assert len({path.name for path in CLOSED_SET}) == len(CLOSED_SET)


def opens(run_python, *arguments):
    return "equal" in run_python(LOAD, *arguments).stdout


def test_head_saved_again_by_the_head(head_checkpoint, run_python, tmp_path):
    folder, tensors = head_checkpoint
    assert_whole(folder)
    assert opens(run_python, folder, HEAD, tensors, "", tmp_path / "again")
    assert_whole(tmp_path / "again")
    assert opens(run_python, tmp_path / "again", HEAD, tensors, "")
    assert opens(run_python, tmp_path / "again", "AutoModel", tensors, "")


@pytest.mark.audit
def test_head_saved_again_by_the_base(head_checkpoint, run_python, tmp_path):
    folder, tensors = head_checkpoint
    assert opens(run_python, folder, "AutoModel", tensors, "", tmp_path / "again")
    assert_whole(tmp_path / "again")
    assert opens(run_python, tmp_path / "again", "AutoModel", tensors, "")
    assert opens(run_python, tmp_path / "again", HEAD, tensors, NEW_HEAD)


@pytest.mark.audit
def test_base_saved_again_by_a_head(base_checkpoint, run_python, tmp_path):
    folder, tensors = base_checkpoint
    assert_whole(folder)
    assert opens(run_python, folder, "AutoModel", tensors, "")
    assert opens(run_python, folder, HEAD, tensors, NEW_HEAD, tmp_path / "again")
    assert_whole(tmp_path / "again")
    assert opens(run_python, tmp_path / "again", "AutoModel", tensors, "")


@pytest.mark.parametrize(
    ("model_class", "auto_class", "config"),
    [
        pytest.param(
            AxialForSemanticSegmentation, "AutoModelForSemanticSegmentation", "volume", marks=pytest.mark.audit
        ),
        (AxialForDensePrediction, "AutoModelForImageToImage", "circle"),
        pytest.param(AxialForMaskedImageModeling, "AutoModelForMaskedImageModeling", "plane", marks=pytest.mark.audit),
    ],
)
def test_dense_heads(model_class, auto_class, config, run_python, tmp_path):
    torch.manual_seed(0)
    folder, tensors = save(model_class(make_config(**CONFIGS[config], dense_head="pyramid")), tmp_path)
    assert_whole(folder)
    assert opens(run_python, folder, auto_class, tensors, "", tmp_path / "again")
    assert_whole(tmp_path / "again")
    assert opens(run_python, tmp_path / "again", auto_class, tensors, "")


def test_a_wrong_weight_is_seen(base_checkpoint, run_python, tmp_path):
    """The comparison that all of the above rests on can fail."""
    folder, tensors = base_checkpoint
    wrong = shutil.copytree(folder, tmp_path / "wrong")
    weights = load_file(wrong / "model.safetensors")
    weights["norm.bias"] = weights["norm.bias"] + 1e-6
    save_file(weights, wrong / "model.safetensors", metadata={"format": "pt"})
    done = run_python(LOAD, wrong, "AutoModel", tensors, "", check=False)
    assert done.returncode == 1 and "AssertionError" in done.stderr


def test_config_opens(head_checkpoint, run_python, tmp_path):
    folder, _ = head_checkpoint
    code = """
import sys
from transformers import AutoConfig
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(config).__module__.startswith("transformers_modules.")
config.save_pretrained(sys.argv[2])
"""
    run_python(code, folder, tmp_path)
    saved, again = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    assert {key: again[key] for key in saved if key != "auto_map"} == {
        key: value for key, value in saved.items() if key != "auto_map"
    }
    assert again["auto_map"]["AutoConfig"] == saved["auto_map"]["AutoConfig"]
    assert (tmp_path / "configuration_axial.py").is_file()


@pytest.fixture
def pictures(tmp_path):
    generator = torch.Generator().manual_seed(2)
    paths = [tmp_path / f"picture-{number}.png" for number in range(2)]
    for path in paths:
        pixels = torch.randint(256, (13, 17, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    return paths


@pytest.fixture
def processor():
    return AxialImageProcessor(size={"height": 10, "width": 9}, image_mean=[0.1, 0.2, 0.3])


def test_image_processor_opens_and_is_saved_again(processor, pictures, run_python, tmp_path):
    code = """
import sys
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor
folder, expected, again, *pictures = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
pixel_values = processor([Image.open(path) for path in pictures], return_tensors="pt").pixel_values
assert torch.equal(pixel_values, load_file(expected)["pixel_values"])
processor.save_pretrained(again)
print("equal")
"""
    pixel_values = processor([Image.open(path) for path in pictures], return_tensors="pt").pixel_values
    assert pixel_values.shape == (2, 3, 10, 9)
    save_file({"pixel_values": pixel_values}, tmp_path / "expected.safetensors")
    processor.save_pretrained(tmp_path / "first")
    for folder, again in (("first", "second"), ("second", "third")):
        arguments = (tmp_path / folder, tmp_path / "expected.safetensors", tmp_path / again, *pictures)
        assert "equal" in run_python(code, *arguments).stdout
    names = ["image_processing_axial.py", "preprocessor_config.json", "processor_arrays.py", "processor_options.py"]
    for folder in ("first", "second", "third"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names


ARRAY = torch.randn(2, 7, 11, 13, generator=torch.Generator().manual_seed(3))
PROCESSORS = {
    "grid": (
        lambda: AxialGridProcessor(patch_size=[2, 3, 5], num_channels=2, add_validity_channel=True).fit(ARRAY),
        torch.where(ARRAY > 1, torch.nan, ARRAY),
    ),
    "video": (
        lambda: AxialVideoProcessor(
            num_frames=3, size={"height": 9, "width": 10}, num_channels=1, patch_size=[2, 3, 5]
        ),
        ARRAY[0, :, None].sigmoid(),
    ),
}


@pytest.mark.parametrize("kind", ["grid", pytest.param("video", marks=pytest.mark.audit)])
def test_processors_of_grids_open_and_are_saved_again(kind, run_python, tmp_path):
    code = """
import sys
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor
folder, tensors, again = sys.argv[1:]
tensors = load_file(tensors)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
inputs = processor(tensors.pop("array"), return_tensors="pt")
assert set(inputs) == set(tensors)
assert all(torch.equal(inputs[name], expected) for name, expected in tensors.items())
processor.save_pretrained(again)
print("equal")
"""
    make, array = PROCESSORS[kind]
    processor = make()
    inputs = processor(array, return_tensors="pt")
    save_file({"array": array, **{k: v.contiguous() for k, v in inputs.items()}}, tmp_path / "expected.safetensors")
    processor.save_pretrained(tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    for folder, again in (("moved", "second"), ("second", "third")):
        arguments = (tmp_path / folder, tmp_path / "expected.safetensors", tmp_path / again)
        assert "equal" in run_python(code, *arguments).stdout
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("moved", "third")]
    assert files[0] == files[1] and f"{kind}_processing_axial.py" in files[0]


def test_processors_beside_a_model_share_its_files(head_checkpoint, tmp_path):
    """Whichever is saved last, the folder holds the code of both."""
    folder = shutil.copytree(head_checkpoint[0], tmp_path / "both")
    for make, _ in PROCESSORS.values():
        make().save_pretrained(folder)
        assert_whole(folder)


def test_pipeline_from_a_bare_folder(processor, pictures, run_python, tmp_path):
    torch.manual_seed(0)
    config = make_config(**CONFIGS["plane"], id2label={0: "zero", 1: "one", 2: "two"})
    model = AxialForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        inputs = processor([Image.open(path) for path in pictures], return_tensors="pt")
        probabilities = model(**inputs).logits.softmax(-1)
    code = """
import json, sys
from transformers import pipeline
folder, *pictures = sys.argv[1:]
tasks = ("image-classification", "image-feature-extraction")
classify, extract = (pipeline(task, model=folder, trust_remote_code=True) for task in tasks)
print(json.dumps([[classify(path) for path in pictures], [extract(path) for path in pictures]]))
"""
    found, features = json.loads(run_python(code, tmp_path / "model", *pictures).stdout.splitlines()[-1])
    assert len(found) == len(features) == 2
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(features)[:, 0], model.axial(**inputs).last_hidden_state)
    for scores, expected in zip(found, probabilities, strict=True):
        assert [score["label"] for score in scores] == [
            config.id2label[i] for i in expected.argsort(descending=True).tolist()
        ]
        torch.testing.assert_close(
            torch.tensor([score["score"] for score in scores]), expected.sort(descending=True).values
        )


# Loads a checkpoint on two ranks, splits its parameters over them, and saves what both hold together. Follows the text
# of ranks.py, which a stranger does not find.
SAVE_FROM_FSDP2 = """
def save(folder, again):
    rank = dist.get_rank()
    os.environ["HF_MODULES_CACHE"] += f"-{rank}"  # both would copy the same files at the same time
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for layer in model.axial.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert type(model).__module__.startswith("torch."), type(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model.save_pretrained(again, is_main_process=rank == 0, state_dict=get_model_state_dict(model, options=options))


fork_ranks(save, sys.argv[1:], folder=os.getcwd(), world_size=2)
"""


@pytest.mark.audit
@pytest.mark.distributed
def test_model_split_by_fsdp2_saves_its_own_code(head_checkpoint, run_python, tmp_path):
    folder, tensors = head_checkpoint
    run_python(Path(ranks.__file__).read_text() + SAVE_FROM_FSDP2, folder, tmp_path / "again")
    assert_whole(tmp_path / "again")
    assert opens(run_python, tmp_path / "again", HEAD, tensors, "")

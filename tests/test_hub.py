"""Models on the Hub: pushed, and opened by strangers, with the real huggingface_hub client against `tests/hub.py`.

One process that has the package pushes; strangers (`run_python`: no package, caches of their own) open what is there,
and compare it bit for bit with what the pusher computed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file

from tests.conftest import ROOT
from tests.examples import conftest  # noqa: F401  which lets the scripts find each other
from tests.examples.test_train_image_classification import SCRIPT, make_inputs
from tests.hub import LoopbackHub
from tests.test_repository import project_files

# A classifier, pushed twice with other weights; code that is newer than what was reviewed; and the whole checkout.
PUSH = """
import json, sys
from pathlib import Path
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from modeling_axial import AxialConfig, AxialForImageClassification, AxialImageProcessor

folder, checkout = map(Path, sys.argv[1:])
config = AxialConfig(
    image_size=[10, 9], patch_size=[2, 3], hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    id2label={0: "zero", 1: "one", 2: "two"}, initializer_range=0.5, out_indices=[1, 2],
)
torch.manual_seed(0)
model = AxialForImageClassification(config).eval()
processor = AxialImageProcessor(size={"height": 10, "width": 9}, image_mean=[0.1, 0.2, 0.3])
tensors = {"pictures": torch.randint(256, (2, 13, 17, 3), dtype=torch.uint8)}
tensors["pixel_values"] = processor(list(tensors["pictures"]), return_tensors="pt").pixel_values


def compute(name):
    with torch.no_grad():
        output = model(tensors["pixel_values"], output_hidden_states=True)
        tensors[f"{name} logits"] = output.logits
        tensors[f"{name} last_hidden_state"] = model.axial.norm(output.hidden_states[-1])


api, commits = HfApi(), {}
compute("first")
model.push_to_hub("classifier", tags=["planted"])
commits["first"] = processor.push_to_hub("user/classifier").oid
api.create_tag("user/classifier", tag="v1", revision=commits["first"])
with torch.no_grad():
    model.classifier.bias += 1
    model.axial.norm.bias += 1
compute("second")
commits["second"] = model.push_to_hub("user/classifier", revision="next", commit_message="More bias").oid

# Somebody changes the code on main.
heads = Path(folder, "heads.py")
heads.write_text(Path("modeling_axial/modeling_axial_heads.py").read_text() + "\\nraise SystemExit('unread code')\\n")
commits["hostile"] = api.upload_file(
    path_or_fileobj=heads, path_in_repo="modeling_axial_heads.py", repo_id="user/classifier"
).oid

# What the training scripts upload.
sys.path.insert(0, "examples")
from image_classification_report import write_model_card
from training_run import push_to_hub


class Data:
    name, hub_id, license, label_names = "pictures", "imagefolder", "mit", ["zero", "one", "two"]
    trained_on, measured_on = "pictures", "other pictures"


model.save_pretrained(folder / "trained")
processor.save_pretrained(folder / "trained")
write_model_card(folder / "trained", Data, {"this model": 0.75}, None)
push_to_hub(folder / "trained", None, None, "Train")

api.create_repo("checkout")
commits["checkout"] = api.upload_folder(repo_id="user/checkout", folder_path=checkout).oid
save_file(tensors, folder / "tensors.safetensors")
print(json.dumps(commits))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with what PUSH has put there: (hub, commits, folder with the tensors)."""
    folder = tmp_path_factory.mktemp("pushed")
    checkout = folder / "checkout"
    for path in project_files():
        target = checkout / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (checkout / "outputs").mkdir()
    (checkout / "outputs" / "secret.txt").write_text("ignored by git, and so by the upload")
    with LoopbackHub() as server:
        done = subprocess.run(
            [sys.executable, "-c", PUSH, folder, checkout],
            cwd=ROOT,
            env=os.environ | server.environment(folder / "home"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        commits = json.loads(done.stdout.splitlines()[-1])
        yield SimpleNamespace(server=server, commits=commits, folder=folder)


CHECKS = """
import json, sys
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

tensors, *arguments = sys.argv[1:]
tensors = load_file(tensors)
pictures = [Image.fromarray(picture.numpy()) for picture in tensors["pictures"]]
HEAD = AutoModelForImageClassification


def check(name, auto_class=HEAD, **revisions):
    # Opens user/classifier; its outputs must be those of the model called `name`. Returns the commit of the code.
    model = auto_class.from_pretrained("user/classifier", trust_remote_code=True, **revisions)
    with torch.no_grad():
        if auto_class is HEAD:
            assert torch.equal(model(tensors["pixel_values"]).logits, tensors[name + " logits"])
        elif auto_class is AutoBackbone:
            feature_maps = model(tensors["pixel_values"]).feature_maps
            assert len(feature_maps) == 2
            assert torch.equal(feature_maps[1].movedim(1, -1), tensors[name + " last_hidden_state"])
        else:
            assert torch.equal(model(tensors["pixel_values"]).last_hidden_state, tensors[name + " last_hidden_state"])
    root, user, repository, commit, file = type(model).__module__.split(".")
    assert (root, user, repository) == ("transformers_modules", "user", "classifier")
    return commit
"""


def test_what_push_to_hub_has_written(hub):
    repository = hub.server.repositories["user/classifier"]
    files = repository.commits[hub.commits["first"]]
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(files)
    assert {"modeling_axial.py", "modeling_axial_heads.py", "image_processing_axial.py"} <= set(files)
    assert files["model.safetensors"].is_lfs and not files["config.json"].is_lfs
    card = ModelCard(files["README.md"].content.decode()).data
    assert card.library_name == "transformers" and set(card.tags) == {"axial-attention", "planted"}
    assert repository.titles[hub.commits["second"]] == "More bias"
    assert set(repository.branches) == {"main", "next"} and repository.tags == {"v1": hub.commits["first"]}


OPEN = """
first, second = arguments
for auto_class in (AutoModel, HEAD, AutoBackbone):
    for revision in ("v1", first):
        assert check("first", auto_class, revision=revision) == first
assert check("second", revision="next") == second

# The weights of one revision with the code of another.
assert check("second", revision="next", code_revision="v1") == first

processor = AutoImageProcessor.from_pretrained("user/classifier", trust_remote_code=True, revision=first)
assert torch.equal(processor(pictures, return_tensors="pt").pixel_values, tensors["pixel_values"])

expected = tensors["first logits"].softmax(-1)
for task in ("image-classification", "image-feature-extraction"):
    pipe = pipeline(task, model="user/classifier", trust_remote_code=True, revision=first)
    if task == "image-classification":
        for scores, probabilities in zip(pipe(pictures), expected, strict=True):
            label = ["zero", "one", "two"][probabilities.argmax()]
            assert scores[0]["label"] == label and abs(scores[0]["score"] - probabilities.max().item()) < 1e-6
    else:
        features = torch.tensor(pipe(pictures[0]))
        torch.testing.assert_close(features[0], tensors["first last_hidden_state"][0])

# A pinned revision never ran what came later; an unpinned one does.
try:
    HEAD.from_pretrained("user/classifier", trust_remote_code=True)
except SystemExit as stopped:
    print(stopped)
"""


OFFLINE = """
(first,) = arguments
for revision in ("v1", first):
    assert check("first", revision=revision) == first
    assert check("first", AutoModel, revision=revision) == first
assert check("second", revision="next", code_revision="v1") == first
AutoImageProcessor.from_pretrained("user/classifier", trust_remote_code=True, revision=first)
assert len(pipeline("image-classification", "user/classifier", trust_remote_code=True, revision="v1")(pictures)) == 2
print("offline")
"""


@pytest.mark.audit
@pytest.mark.slow
def test_strangers_open_pinned_revisions_then_offline(hub, run_python, tmp_path):
    environment = hub.server.environment(tmp_path)
    tensors, first, second = hub.folder / "tensors.safetensors", hub.commits["first"], hub.commits["second"]
    start = len(hub.server.requests)
    opened = run_python(CHECKS + OPEN, tensors, first, second, env=environment)
    assert opened.stdout.splitlines()[-1] == "unread code"
    asked = hub.server.requests[start:]
    assert asked and all(method in ("GET", "HEAD") for method, _ in asked)

    offline = run_python(CHECKS + OFFLINE, tensors, first, env=environment | {"HF_HUB_OFFLINE": "1"})
    assert offline.stdout.splitlines()[-1] == "offline"
    assert len(hub.server.requests) == start + len(asked)


CHECKOUT = """
(commit,) = arguments
model = HEAD.from_pretrained("user/checkout", trust_remote_code=True, revision=commit)
assert type(model).__module__.startswith("transformers_modules.user.checkout." + commit), type(model)
backbone = AutoBackbone.from_pretrained("user/checkout", trust_remote_code=True, revision=commit)
assert backbone(torch.zeros(1, 1, 28, 28)).feature_maps[0].shape == (1, 64, 7, 7)

one = Image.new("L", (28, 28))
one.paste(255, (13, 4, 16, 24))
classify = pipeline(model="user/checkout", trust_remote_code=True, revision=commit)  # the card names the task
print(classify(one)[0]["label"])

for repository, options, message in (
    ("user/nobody", {}, "not a valid model identifier"),
    ("user/classifier", {"revision": "v9"}, "v9"),
    ("user/classifier", {"revision": "v1", "trust_remote_code": False}, "trust_remote_code"),
):
    try:
        HEAD.from_pretrained(repository, **{"trust_remote_code": True} | options)
    except (OSError, ValueError) as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"{repository} {options} was not refused")
"""


def test_the_whole_checkout_pushed_as_it_is_opens(hub, run_python, tmp_path):
    files = hub.server.repositories["user/checkout"].commits[hub.commits["checkout"]]
    assert "modeling_axial/modeling_axial.py" in files and not any(path.startswith("outputs") for path in files)
    card = ModelCard(files["README.md"].content.decode()).data
    assert (card.license, card.library_name, card.metrics) == ("mit", "transformers", ["accuracy"])
    assert "axial-attention" in card.tags and card.eval_results[0].metric_type == "accuracy"
    arguments = hub.folder / "tensors.safetensors", hub.commits["checkout"]
    opened = run_python(CHECKS + CHECKOUT, *arguments, env=hub.server.environment(tmp_path))
    assert opened.stdout.splitlines()[-1] == "1"


def test_a_trained_model_has_a_card_whose_lines_open_it(hub, run_python, tmp_path):
    repository = hub.server.repositories["user/trained"]
    *_, uploaded, carded = repository.commits
    card = ModelCard(repository.commits[carded]["README.md"].content.decode())
    (result,) = card.data.eval_results
    assert (card.data.license, card.data.library_name, card.data.metrics) == ("mit", "transformers", ["accuracy"])
    assert result.metric_value == 0.75 and {"axial-attention", "image-classification"} <= set(card.data.tags)
    assert "`trust_remote_code=True` runs the Python files" in card.text
    code = re.search(r"```python\n(.*?)```", card.text, flags=re.DOTALL)[1]
    assert code.count(f'from_pretrained("user/trained", revision="{uploaded}", trust_remote_code=True)') == 2
    assert repository.commits[uploaded]["model.safetensors"] == repository.commits[carded]["model.safetensors"]
    done = run_python(code + "print(type(model).__module__)", env=hub.server.environment(tmp_path))
    assert done.stdout.split() == [f"transformers_modules.user.trained.{uploaded}.modeling_axial_heads"]


@pytest.mark.audit
@pytest.mark.slow
def test_fine_tuning_starts_from_a_model_on_the_hub(hub, tmp_path):
    """Its weights, not its code: that on main stops whoever runs it."""
    inputs = make_inputs(tmp_path)
    arguments = {"train_dir": inputs / "train", "validation_dir": inputs / "validation", "output_dir": tmp_path / "run"}
    arguments |= {"model_name_or_path": "user/classifier", "max_train_steps": 1, "seed": 1}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--freeze_backbone", *(f"--{name}={value}" for name, value in arguments.items())],
        env=os.environ | hub.server.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pushed = hub.server.repositories["user/classifier"].commits[hub.commits["first"]]["model.safetensors"].content
    before, after = load(pushed), load_file(tmp_path / "run" / "model.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "classifier.weight",
        "classifier.bias",
    }


REFUSALS = """
import sys
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError,
)


def refused(error, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except error:
        return
    raise AssertionError(f"{call} {arguments} {options} was not refused")


api = HfApi()
refused(RepositoryNotFoundError, api.model_info, "user/nobody")
refused(RevisionNotFoundError, api.model_info, "user/classifier", revision="v9")
refused(EntryNotFoundError, hf_hub_download, "user/classifier", "missing.json")
refused(HfHubHTTPError, api.create_repo, "classifier")
refused(HfHubHTTPError, api.create_repo, "another", token="hf_wrong")
change = [CommitOperationAdd("note.txt", b"note")]
refused(
    HfHubHTTPError, api.create_commit, "user/classifier", change, commit_message="late", parent_commit=sys.argv[1]
)

api.create_repo("scratch")
commit = api.create_commit("user/scratch", change, commit_message="note").oid
assert open(hf_hub_download("user/scratch", "note.txt")).read() == "note"
api.delete_file("note.txt", "user/scratch", parent_commit=commit)
assert api.list_repo_files("user/scratch") == [".gitattributes"]
assert api.list_repo_files("user/scratch", revision=commit) == [".gitattributes", "note.txt"]
assert [commit.title for commit in api.list_repo_commits("user/scratch")][-2:] == ["note", "initial commit"]
api.delete_repo("user/scratch")
assert not api.repo_exists("user/scratch")
print("refused")
"""


def test_the_hub_refuses_what_the_real_one_refuses(hub, run_python, tmp_path):
    done = run_python(REFUSALS, hub.commits["first"], env=hub.server.environment(tmp_path))
    assert done.stdout.splitlines()[-1] == "refused"

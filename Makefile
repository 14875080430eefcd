# `make demo` and `make test` are all a newcomer needs; both first make the environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
TRITON := 3.9.0

.PHONY: demo test audit triton kernels mutants floors distributions docs web generate checkpoint checkpoint-autoregressive style check constraints clean

demo: .venv/installed-demo  # train a classifier of handwritten digits; called again, it goes on where it was stopped
	$(BIN)/python examples/train_image_classification.py configuration/training/digits.yaml \
		--output_dir outputs/digits --resume_from_checkpoint latest

test: .venv/installed-test  # all tests but the exhaustive ones, one process per core, without the network
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not audit"

audit: .venv/installed-dev  # the exhaustive ones, of which `make test` holds a sample, and one that builds the site
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m audit

triton: build/triton-$(TRITON)  # install what the next one needs, 1 GB

kernels: .venv/installed-test triton  # those of Triton, in its interpreter, which needs no GPU
	TRITON_INTERPRET=1 PYTHONPATH=$(CURDIR)/build/triton-$(TRITON) $(BIN)/python -m pytest -m kernels tests/kernels

mutants: .venv/installed-test  # plant small faults one at a time, each of which some test should find
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants \
		--files attention position_embeddings axial_layer reversible set_attention \
		--sampled feed_forward grid line_cache modeling_axial modeling_axial_decoder patch_embeddings pooling sampling \
			training/arguments training/checkpoints training/metrics training/processes training/sampler

docs: .venv/installed-docs  # the site of the documentation, with a reference made of the docstrings: build/docs/index.html
	$(BIN)/python -m sphinx --fail-on-warning --builder html --conf-dir docs . build/docs

floors: .venv/installed-test  # all tests but the exhaustive ones, with the oldest versions that pyproject.toml allows
	$(BIN)/python -m tests.floors

generate: .venv/installed-generate  # train a model that draws digits, in about an hour; goes on where it was stopped
	$(BIN)/python examples/train_autoregressive_image.py configuration/training/digits_autoregressive.yaml \
		--output_dir outputs/digits-autoregressive --resume_from_checkpoint latest

distributions: .venv/installed-test  # files for a package index: make distributions ADDRESS=https://github.com/OWNER/NAME
	$(BIN)/python -m tests.distributions $(ADDRESS)

web: .venv/installed-segmentation .venv/installed-features  # build the page that runs small models in a browser; needs npm
	$(BIN)/python examples/web/build_page.py

checkpoint: .venv/installed-demo  # make the checkpoint in the root of this repository
	$(BIN)/python examples/make_checkpoint.py digits

checkpoint-autoregressive: .venv/installed-generate  # make the checkpoint in checkpoints/digits-autoregressive
	$(BIN)/python examples/make_checkpoint.py digits-autoregressive

style: .venv/installed-dev  # put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: .venv/installed-dev  # look at the shape and the types of the code, and change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

# The file `whole` is there only while no installation is under way: an environment without it was cut off, or failed,
# and is made again from nothing. An installation counts from its last line on, when its own stamp is written.
.venv/installed-%: pyproject.toml constraints.txt
	test -e .venv/whole || $(PYTHON) -m venv --clear .venv
	rm -f .venv/whole
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$*]'
	touch .venv/whole $@

# Beside the environment and not in it, so that nothing else meets Triton (1 GB), and no line of constraints.txt: builds
# of torch for CUDA demand a version of their own.
build/triton-%: | .venv/installed-test
	rm -rf build/triton-* build/unfinished-triton
	$(BIN)/python -m pip install --no-deps --target build/unfinished-triton triton==$*
	mv build/unfinished-triton $@

constraints:  # take the newest versions that pyproject.toml allows into constraints.txt; torch is raised there by hand
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)" --editable '.[dev]'
	{ sed '/^[^#]/,$$d' constraints.txt; $(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:  # remove the environment and every cache, but no trained model
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

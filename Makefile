# Everything needs Rust, a C++ compiler and Python >= 3.9 with pip; nothing else is installed outside this directory.
#   make demo      build, quantize a small real model with AWQ and GPTQ, measure and try both
#   make test      what every change must pass
#   make image-test  build the container image and try it on a small model
#   make dist        an archive with the program and the libraries that it needs
#   make CUDA=1 …  fetch libtorch with what a CUDA GPU needs (about 2 GB more)

PYTHON ?= python3
# One profile everywhere, so that libtorch's C++ shim is compiled once; `dist` is what images and archives hold.
PROFILE = release
CARGO_FLAGS = --profile $(PROFILE) --locked
NIBBLE = $(or $(CARGO_TARGET_DIR),target)/$(PROFILE)/nibble
MODEL = models/SmolLM2-135M-Instruct
TOOLS = .venvs/tools
WITH_TOOLS = PYTHONPATH=$(TOOLS) PYTHONDONTWRITEBYTECODE=1 $(PYTHON)

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore

.PHONY: image-test dist build demo test lint bench compare golden families clients libtorch model prerequisites clean

build: libtorch
	cargo build $(CARGO_FLAGS)

demo: build model
	$(PYTHON) scripts/demo.py --nibble $(NIBBLE) $(MODEL)

# The tests come last, so that their closing line is the last one.
test: lint model
	cargo test $(CARGO_FLAGS)

lint: libtorch
	cargo fmt --check
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --no-deps --document-private-items

bench: build model $(TOOLS)/ready
	$(WITH_TOOLS) scripts/bench.py --nibble $(NIBBLE) $(MODEL)

# Measures Nibble side by side with GPTQModel, LLM Compressor and AutoAWQ; the first run fetches several GB.
compare: build model $(TOOLS)/ready
	$(WITH_TOOLS) scripts/compare.py --nibble $(NIBBLE) $(MODEL)

# Makes the golden files again with the pinned reference implementations; fails if they differ from what is committed.
golden: model
	PYTHON=$(PYTHON) scripts/golden.sh

# Quantizes a tiny model of every family, dequantizes it by other code and holds it against transformers, also on images.
families: build
	$$(PYTHON=$(PYTHON) scripts/venv.sh transformers) -B scripts/clients/families.py --nibble $(NIBBLE)
	$$(PYTHON=$(PYTHON) scripts/venv.sh transformers) -B scripts/clients/images.py --nibble $(NIBBLE)

# Loads what Nibble writes in transformers and in vLLM, and compares their perplexity with Nibble's own.
clients: build model
	$(PYTHON) scripts/clients/check.py --nibble $(NIBBLE) $(MODEL)

# Builds the images with Docker, or without a Docker engine with buildah, and quantizes a small model in them.
image-test: model
	PYTHON=$(PYTHON) scripts/image_test.sh $(MODEL)

# target/nibble-VERSION-x86_64-linux.tar.gz: unpack it anywhere and run bin/nibble.
dist:
	$(MAKE) PROFILE=dist build
	PYTHON=$(PYTHON) scripts/dist.sh

libtorch: prerequisites
ifndef LIBTORCH
	$(PYTHON) scripts/libtorch.py $(if $(CUDA),--cuda)
endif

model: $(MODEL)/model.safetensors

$(MODEL)/model.safetensors: $(TOOLS)/ready
	$(WITH_TOOLS) scripts/smollm2.py $(MODEL)

# `pip --target` needs neither the venv module, which Debian packages apart, nor a writable system Python.
$(TOOLS)/ready: scripts/requirements/tools.txt | prerequisites
	rm -rf $(TOOLS)
	$(PYTHON) -m pip install --quiet --target $(TOOLS) -r $<
	touch $@

prerequisites:
	@scripts/prerequisites.sh $(PYTHON)

# Keeps the fetched libtorch and every model that this file did not make.
clean:
	cargo clean
	rm -rf .venvs $(MODEL)

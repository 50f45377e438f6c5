# Every target does the set-up it needs. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
# cpu: PyTorch's CPU build (smaller; from PyTorch's own index, versions as locked). Empty: PyPI's build, hashes as locked.
TORCH_BACKEND ?=
ARGS   ?=
# Inputs for each reader in `make fuzz`, and which readers; empty: all.
EXAMPLES ?= 10000
READERS  ?=
# The revision that `make golden` compares with: the last one before the packages of rco/ were made.
BASE     ?= 81e6d1330e9f5fff968b23e1f4becebc8543420c
# State of local runs that `make screenshots` looks at.
STATE  ?= .rco

# docker, podman, or the path of either. What a build is lent by these variables is not kept: SSL_CERT_FILE, PIP_CONFIG_FILE,
# UV_CONFIG_FILE.
DOCKER     ?= docker
BASE_IMAGE ?=
EXTRA      ?=
REGISTRY   ?=
COMPOSE    ?= $(DOCKER) compose
# compose: runs are tracked by the services of `make stack-up`.
STACK      ?=

BIN := $(VENV)/bin
IMAGES = $(PYTHON) docker/images.py --docker '$(DOCKER)'
UV  := VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv
SHELL := /bin/bash
.DEFAULT_GOAL := help
# Byte code makes the imports of every task twice as fast.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

ifeq ($(STACK),compose)
export MLFLOW_TRACKING_URI := $(shell $(PYTHON) docker/stack.py address)
else ifneq ($(STACK),)
$(error STACK=$(STACK) is not known; use STACK=compose, or set MLFLOW_TRACKING_URI)
endif

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: $(VENV)/.run ## run the whole pipeline on this machine; ARGS="--dataset ... --strategy ..." or ARGS="--recipe NAME"
	@$(BIN)/rco run $(ARGS)

.PHONY: compare
compare: $(VENV)/.run ## compare RCO with plain distillation over several seeds; ARGS="--seeds 0,1,2,3 --student ..."
	@$(BIN)/rco compare $(ARGS)

.PHONY: sweep
sweep: $(VENV)/.run ## sweep settings against one teacher; ARGS="--tau 2,4,8 --strategy greedy,equal-interval"
	@$(BIN)/rco sweep $(ARGS)

.PHONY: doctor
doctor: $(VENV)/.run ## check this machine and the services that it is told to use; ARGS="--s3 s3://BUCKET/PREFIX --endpoint URL"
	@$(BIN)/rco doctor $(ARGS)

.PHONY: test
test: $(VENV)/.dev ## run the tests of all parts and of the pipelines; no server needed
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder tests/unit tests/pipeline $(ARGS)

.PHONY: test-tasks
test-tasks: $(VENV)/.dev ## run the tests of whole tasks: resume points, results, stores, MLflow, export; no server needed
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests/tasks $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.dev ## give every reader of files 10,000 damaged inputs (an hour); EXAMPLES=500 READERS="tar image"
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(READERS) --examples $(EXAMPLES) $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.dev ## the fault campaign: kill -9, full disks, wrong clocks, failing services; half an hour, root; ARGS="--short"
	@$(BIN)/python -m tests.chaos.campaign --output build/chaos.json $(ARGS)

.PHONY: golden
golden: $(VENV)/.dev ## compare what this tree does with what BASE=REV did: weights, figures, MLflow, forms, help, refusals
	@$(BIN)/python -m tests.golden --base '$(BASE)' $(ARGS)

.PHONY: test-faults
test-faults: $(VENV)/.dev ## run the tests that kill and interrupt whole local runs and the workers of a task, and move and clean their homes
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests/chaos $(ARGS)

.PHONY: audit
audit: $(VENV)/.uv ## look the locked dependencies up among known vulnerabilities (needs the network; ARGS="-s osv" asks OSV)
	@$(UV) tool run --from 'pip-audit==2.10.0' pip-audit --strict --require-hashes --disable-pip \
		-r requirements-uv.lock -r requirements.lock -r requirements-dev.lock -r docker/mlflow-requirements.lock $(ARGS)

.PHONY: test-integration
test-integration: $(VENV)/.dev ## run the tests against real servers, which they start on the loopback interface
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests/integration $(ARGS)

.PHONY: test-browser
test-browser: $(VENV)/.dev ## look at MLflow in a real browser (needs Chromium); RCO_BROWSER_HOME=.rco looks at your own comparison
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests/browser $(ARGS)

.PHONY: test-images
test-images: $(VENV)/.dev ## build the images with a container engine of their own and run the pipeline in them (root, Debian's docker.io)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -s --timeout 1800 tests/images $(ARGS)

.PHONY: screenshots
screenshots: $(VENV)/.dev ## take the pictures of MLflow in docs/images, of the comparison in STATE=.rco (needs Chromium)
	@$(BIN)/python -m tests.browser.screenshots $(STATE) docs/images

.PHONY: test-release
test-release: $(VENV)/.dev ## run `make run` for real and check what it promises
	@$(BIN)/pytest -s tests/release $(ARGS)

# Tests of what has nothing of PyTorch: with another one they would prove the same again.
WITHOUT_TORCH := clean data_folders deployment disk docker docs evidence fork_server golden manifests mounted moved_home plots \
	probe race raced

.PHONY: test-oldest
test-oldest: $(VENV)-oldest/.dev ## run the tests of parts and tasks with the oldest PyTorch that is supported
	@OMP_NUM_THREADS=1 HYPOTHESIS_EXAMPLES=30 $(VENV)-oldest/bin/pytest -n 2 --dist worksteal \
		$(WITHOUT_TORCH:%=--ignore tests/unit/test_%.py) tests/unit tests/tasks $(ARGS)

.PHONY: bench
bench: ## measure everything: a step beside its peers, growth, overhead, a whole run, many students (half an hour)
	@status=0; for part in step growth overhead settings resume pipeline students prepare workflow; do \
		echo "=== bench-$$part"; $(MAKE) --no-print-directory bench-$$part || status=1; done; exit $$status

.PHONY: bench-step
bench-step: $(VENV)-peers/.bench ## measure one distillation step beside KD_Lib, torchdistill and a plain loop; ARGS="--rounds 7 --data DIR"
	@$(BIN)/python benchmarks/kd_step.py --peers $(VENV)-peers/bin/python $(ARGS)

.PHONY: bench-growth
bench-growth: $(VENV)/.dev ## measure how cost grows with batch, data, classes, anchors and the route's length
	@$(BIN)/python benchmarks/growth.py $(ARGS)

.PHONY: bench-overhead
bench-overhead: $(VENV)/.dev ## measure what keeping the route and tracking cost beside training
	@$(BIN)/python benchmarks/overhead.py $(ARGS)

.PHONY: bench-settings
bench-settings: $(VENV)/.dev ## measure what augmentation and regularisation cost
	@$(BIN)/python benchmarks/settings.py $(ARGS)

.PHONY: bench-resume
bench-resume: $(VENV)/.dev ## measure what resume points cost
	@$(BIN)/python benchmarks/resume.py $(ARGS)

.PHONY: bench-pipeline
bench-pipeline: $(VENV)/.dev ## measure a whole local run: training, and everything else
	@$(BIN)/python benchmarks/pipeline.py $(ARGS)

.PHONY: bench-prepare
bench-prepare: $(VENV)/.dev ## measure the preparation of a data set that is too large for memory
	@$(BIN)/python benchmarks/prepare_data.py $(ARGS)

.PHONY: bench-students
bench-students: $(VENV)/.dev ## measure whether several students train faster as one batched program
	@$(BIN)/python benchmarks/many_students.py $(ARGS)

.PHONY: gpu
gpu: ## prove on a GPU what has never run there, in 8 minutes, with python3 as it is; ARGS="--data CIFAR10.tar --minutes 8"
	@$(PYTHON) -m benchmarks.gpu $(ARGS)

.PHONY: bench-workflow
bench-workflow: $(VENV)/.run ## count pods and bytes of the workflows that a cluster keeps (no time is measured)
	@$(BIN)/python benchmarks/workflow.py $(ARGS)

# Plans of benchmarks/evidence/plans; DATA=DIR holds the archives that the larger ones are cut from.
PLAN  ?= gap-digits
HOURS ?= 2
DATA  ?=

.PHONY: evidence
evidence: $(VENV)/.dev ## train what the records of PLAN=gap-digits lack, for HOURS=2; says first what it costs; DATA=DIR ARGS="--jobs 2"
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evidence run '$(PLAN)' --hours '$(HOURS)' $(if $(DATA),--data '$(DATA)') $(ARGS)

.PHONY: evidence-pages
evidence-pages: $(VENV)/.dev ## write the pages of benchmarks/evidence, and README's table, from the records
	@$(BIN)/python -m benchmarks.evidence pages

.PHONY: lint
lint: $(VENV)/.dev ## check format, rules, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy docker/images.py docker/stack.py
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: compile
compile: $(VENV)/.run ## write build/pipelines/*.yaml for Kubeflow Pipelines; ARGS="--deployment site.yaml" names what your cluster gives
	@$(BIN)/rco compile $(ARGS)

.PHONY: upload
upload: $(VENV)/.run ## compile both pipelines and upload them to Kubeflow Pipelines; ARGS="--endpoint http://... --namespace ..."
	@$(BIN)/rco upload $(ARGS)

.PHONY: build-images
build-images: ## build the images; EXTRA=DIR adds your package, TORCH_BACKEND=cpu, BASE_IMAGE=..., DOCKER=podman
	@$(IMAGES) build --base-image '$(BASE_IMAGE)' --torch-backend '$(TORCH_BACKEND)' $(if $(EXTRA),--extra '$(EXTRA)') --more='$(ARGS)'

.PHONY: push-images
push-images: ## push what build-images built to REGISTRY=HOST[:PORT][/PATH], and note the digests for `make compile`
	@$(IMAGES) push --registry '$(REGISTRY)'

.PHONY: stack-up
stack-up: ## start MLflow, PostgreSQL and an S3-compatible store (docker/compose.yaml; passwords: docker/.env)
	@$(IMAGES) build --only mlflow --base-image '$(BASE_IMAGE)' --more='$(ARGS)'
	@MLFLOW_IMAGE=rco-mlflow:$$($(IMAGES) tag) $(PYTHON) docker/stack.py up --compose '$(COMPOSE)'

.PHONY: stack-down
stack-down: ## stop them; their data stay, but with ARGS=--volumes
	@MLFLOW_IMAGE=rco-mlflow:$$($(IMAGES) tag) $(PYTHON) docker/stack.py down --compose '$(COMPOSE)' --more='$(ARGS)'

.PHONY: ui
ui: $(VENV)/.run ## open MLflow on the local runs
	@$(BIN)/python -m rco.tracking.moved .rco
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/.rco/mlflow.db $(ARGS)

.PHONY: setup
setup: $(VENV)/.run ## install what `make run` needs

.PHONY: lock
lock: $(VENV)/.uv ## resolve the dependencies anew and write the locks
	$(UV) pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra export --extra timm pyproject.toml -o requirements.lock
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra dev --extra export --extra timm -c requirements.lock pyproject.toml -o requirements-dev.lock
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		-c requirements.lock docker/mlflow-requirements.in -o docker/mlflow-requirements.lock

.PHONY: clean
clean: ## remove builds and caches; .venv and .rco stay
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.uv: requirements-uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; $(PYTHON) is " + sys.version.split()[0] + ". Name one with: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "cannot make a virtual environment: install the venv module (Debian: apt install python3-venv)"; exit 1; }
	@echo "setting up $(VENV) (once; a few minutes at most)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@touch $@

# A variable: its comma must not part the arguments of a call.
DEVELOPING := [dev,export,timm]

ifeq ($(TORCH_BACKEND),)
install = $(UV) pip install --require-hashes -r $(1) && $(UV) pip install -q --no-deps --no-build-isolation -e .
else
install = $(UV) pip install --torch-backend $(TORCH_BACKEND) --no-verify-hashes -c $(1) -e '.$(2)'
endif

$(VENV)/.run: $(VENV)/.uv requirements.lock pyproject.toml
	@$(call install,requirements.lock,[export,timm])
	@touch $@

$(VENV)/.dev: $(VENV)/.uv requirements-dev.lock pyproject.toml
	@$(call install,requirements-dev.lock,$(DEVELOPING))
	@touch $@ $(VENV)/.run

# The same lock, but for PyTorch and what comes with it.
$(VENV)-oldest/.dev: $(VENV)/.uv requirements-dev.lock pyproject.toml
	@$(PYTHON) -m venv --without-pip $(VENV)-oldest
	@grep -vE '^ *(--hash|#)' requirements-dev.lock | sed 's/ *\\$$//' \
		| grep -vE '^(torch|torchvision|triton|setuptools|cuda-|nvidia-)' > $(VENV)-oldest/constraints.txt
	@VIRTUAL_ENV=$(abspath $(VENV)-oldest) $(BIN)/uv pip install -c $(VENV)-oldest/constraints.txt 'torch==2.11.*' 'torchvision==0.26.*' -e '.$(DEVELOPING)'
	@touch $@

# The peers alone; PyTorch and all else they need are this project's own, so that every contender runs the same.
$(VENV)-peers/.bench: $(VENV)/.dev benchmarks/requirements-peers.lock
	@$(BIN)/python -m venv --without-pip $(VENV)-peers
	@VIRTUAL_ENV=$(abspath $(VENV)-peers) $(BIN)/uv pip install -q --no-deps --require-hashes -r benchmarks/requirements-peers.lock
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		> "$$($(VENV)-peers/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth"
	@touch $@

# The README's two commands and the CI checks. Each target needs only Python and installs everything else.

PYTHON ?= python3
# Plain "torch" would install the newest CUDA build, several gigabytes; this is the tested version.
TORCH ?= torch==2.13.0

# Options for pytest: make test ARGS="-k bundle"
ARGS ?=

.PHONY: demo check test test-fast test-gpu lint types clean links counts figures

# Runs the demo in a user's environment: the installed wheel with [cpu], without torch.
demo: .venv-demo/installed
	mkdir -p demo
	.venv-demo/bin/rbvsr-run tests/data/sample.mp4 -o demo/sample_x4.mp4 \
	    --before-after demo/before_after.png --overwrite
	@echo "Before and after, one frame:  demo/before_after.png"
	@echo "The clip, four times larger:  demo/sample_x4.mp4"

.venv-demo/installed: pyproject.toml $(shell find rbvsr_deploy export engines -name "*.py" -o -name "*.html" -o -name "*.plan")
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --upgrade '.[cpu]'
	touch $@

# Runs all tests in a developer's environment: an editable install with all extras. Most tests use one core, so three run
# in parallel.
test: .venv/installed
	.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# Runs the tests that take less than half a second each, for use during development.
test-fast: .venv/installed
	.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

# Writes the baseline of counted work again (tests/bench/test_gate.py), after a change that moves it.
counts: .venv/installed
	RBVSR_RENEW_COUNTS=1 .venv/bin/python -m pytest -q tests/bench/test_gate.py

# Writes the tables of the pages and the schema of results again, from benchmarks/results/.
figures: .venv/installed
	.venv/bin/python benchmarks/tables.py

# Checks lint and types in seconds, in an environment without torch. Calls to missing libraries are not checked;
# `make types` checks those too.
check: .venv-check/installed links
	.venv-check/bin/ruff check .
	.venv-check/bin/ruff format --check .
	.venv-check/bin/python -m mypy -p rbvsr_deploy --cache-dir .mypy_cache/check \
	    --disable-error-code import-not-found --disable-error-code import-untyped \
	    --disable-error-code no-any-return --disable-error-code unused-ignore \
	    --allow-subclassing-any --allow-untyped-decorators

.venv-check/installed: pyproject.toml
	$(PYTHON) -m venv .venv-check
	.venv-check/bin/python -m pip install --quiet "ruff>=0.17,<0.18" "mypy>=2.4,<3" numpy click rich msgspec platformdirs portalocker pillow
	touch $@

.venv/installed: pyproject.toml | links
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet "$(TORCH)"
	.venv/bin/python -m pip install --quiet --editable '.[cpu,rtx,export,train,eval,bench,dev]'
	.venv/bin/python -m pip uninstall --quiet --yes onnxruntime-ep-openvino  # tests expect the same values on every CPU
	.venv/bin/python -m pip install --quiet --no-deps mmagic==1.2.0 brisque==0.2.0  # parameters of metrics, as files
	touch $@

# Runs the GPU tests with packages for this machine's NVIDIA driver, or the machine's own TensorRT. Skipped tests count as
# failures. TENSORRT="tensorrt-cu12<11" chooses another TensorRT; delete .venv-gpu first.
TENSORRT ?=

test-gpu: .venv-gpu/installed
	RBVSR_REQUIRE_GPU=1 .venv-gpu/bin/python -m pytest -m gpu -W default tests/gpu $(ARGS)

.venv-gpu/installed: pyproject.toml tests/gpu/packages.py
	$(PYTHON) -m venv --system-site-packages .venv-gpu
	if [ -n "$(TENSORRT)" ] || .venv-gpu/bin/python -c "import tensorrt" 2>/dev/null; \
	then .venv-gpu/bin/python tests/gpu/packages.py --without-tensorrt; \
	else .venv-gpu/bin/python tests/gpu/packages.py; fi > .venv-gpu/packages.txt
	.venv-gpu/bin/python -m pip install --quiet --editable '.[engines,export,debug,dev]' -r .venv-gpu/packages.txt $(if $(TENSORRT),"$(TENSORRT)")
	touch $@

# export, engines and training are sub-packages of rbvsr_deploy once installed. In a checkout they are separate folders,
# and the links make them visible to editors and type checkers.
links:
	@for name in export engines training; do ln -sfn ../$$name rbvsr_deploy/$$name; done

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# The second run finds what Windows and Python 3.10 do not have. Some tests need POSIX and are left out of it; NumPy's stubs
# need a newer Python, so that what its functions return is unknown there.
types: .venv/installed links
	.venv/bin/python -m mypy
	.venv/bin/python -m mypy -p rbvsr_deploy --platform win32 --python-version 3.10 \
	    --disable-error-code no-any-return --disable-error-code unused-ignore --cache-dir .mypy_cache/win32

# The documentation as a site in build/site, its API reference from the docstrings. Warnings are errors.
.PHONY: docs
docs: .venv-docs/installed links
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "The documentation:  build/site/index.html"

.venv-docs/installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --editable '.[docs]'
	touch $@

# What a user's environment consists of: a bill of materials (CycloneDX) and the licences, in dist/, for a release.
.PHONY: sbom
sbom: .venv-demo/installed
	$(PYTHON) -m venv .venv-sbom
	.venv-sbom/bin/python -m pip install --quiet "cyclonedx-bom>=7,<8" "pip-licenses>=5,<6"
	mkdir -p dist
	.venv-sbom/bin/cyclonedx-py environment --output-file dist/sbom.json .venv-demo
	.venv-sbom/bin/pip-licenses --python .venv-demo/bin/python --from mixed --with-urls --format markdown \
	    --output-file dist/LICENSES.md

# Writes the versions that CI installs, from the environments in which `make test lint types docs` has passed.
.PHONY: lock
lock:
	{ echo "# Versions with which everything has passed (make lock); .ci/run installs these. Python 3.11, Linux."; \
	for environment in .venv .venv-docs; do $$environment/bin/python -m pip freeze --all --exclude pip --exclude-editable; done | \
	awk -F== '/^[A-Za-z]/ && NF == 2 && !seen[tolower($$1)]++ { sub(/\+.*/, ""); print }' | sort -f; } > .ci/constraints.new
	mv .ci/constraints.new .ci/constraints.txt

clean:
	rm -rf .venv .venv-check .venv-demo .venv-docs .venv-gpu .venv-sbom build demo dist *.egg-info

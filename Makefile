# `make demo` and `make test` take a fresh Debian machine all the way; `make help` lists the rest.

PYTHON ?= python3
# ARGS goes to the command of the target: make demo ARGS="--pipeline Posix", make test ARGS="-k cli"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Debian 12's pip has no -C, only --config-settings.
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What is installed with --no-compile is compiled by its first import, which keeps the bytecode.
unexport PYTHONDONTWRITEBYTECODE
TORCH := $(shell grep '^torch==' requirements-dev.txt)
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
STYLED_C = $(shell find include plugins ucm tests examples -name '*.[ch]' -o -name '*.hpp' -o -name '*.cpp')
# Folders count too: a file that went away changes them.
SOURCES := $(shell find include plugins ucm examples -name __pycache__ -prune -o -print) \
    meson.build meson.options pyproject.toml README.md LICENSE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help deps package wheel dev demo test check style types native native-plain native-asan \
    native-tsan pytest packages packages-short model neon fuzz docs bench bench-posix bench-cache bench-codec e2e e2e-small \
    nfs clean

help:
	@echo 'make demo    build, install into $(VENV), move real KV cache through a pipeline'
	@echo 'make test    everything that is checked: style, types, documentation, native and Python tests'
	@echo 'make docs    the documentation, in build/docs'
	@echo 'make bench   measure this machine; make bench-posix: Posix beside others, for an hour;'
	@echo '             make bench-cache: Cache beside memcpy and others, for half an hour;'
	@echo '             make bench-codec: the codec of Compress beside others, for ten minutes'
	@echo 'make e2e     real vLLM engines, half an hour; installs vLLM (2 GB) in $(VENV)-e2e'
	@echo '             ARGS="--only modes": one scene; make e2e-small: the shortest, a random model'
	@echo 'make nfs     Posix over real NFS and under power cuts, in a guest under QEMU; root, half an hour'
	@echo 'make packages  the examples, each a package, built beside the wheel and tested; three minutes'
	@echo '             ARGS=--all: with all tests of Mooncake, ten minutes'
	@echo 'make model   the protocol of the memory that Cache shares, with spin; pytest has smaller bounds'
	@echo 'make neon    the kernels of Compress for ARM, cross-compiled and emulated, in half a minute'
	@echo 'make fuzz    the codec of Compress with libFuzzer, a minute a target; pytest has a shorter run'
	@echo 'make deps    the system packages that these need; they call it themselves'
	@echo 'Parts of test: check, docs, native (native-asan, native-tsan; not native-plain), pytest,'
	@echo '             packages-short: a minute of packages.'
	@echo 'make clean   remove $(VENV) and build/'

deps:
	@.ci/deps '$(PYTHON)'

# One stamp a python: another PYTHON= makes another environment.
PYTHON_STAMP := $(VENV)/.python-$(subst /,_,$(PYTHON))

$(PYTHON_STAMP): | deps
	@echo 'make: new environment in $(VENV)'
	@rm -rf $(VENV) build
	@$(PYTHON) -m venv $(VENV)
	@touch $@

NO_INDEX = { echo; echo 'make: pip could not install what $(1) names (its own words are above).'; \
    echo 'make: it needs a package index: check the network, or PIP_INDEX_URL and pip config.'; \
    exit 1; } >&2

# Meson keeps the old defaults of options in a folder that is configured already.
$(VENV)/.build: requirements-build.txt meson.options $(PYTHON_STAMP)
	@rm -rf build
	@echo 'make: installing what $< names'
	@$(PIP) install -q -r $< || $(call NO_INDEX,$<)
	@touch $@

$(VENV)/.package: $(VENV)/.build $(SOURCES)
	@echo 'make: building and installing the package'
	@$(IN_VENV) $(PIP) install -q --no-build-isolation --config-settings=build-dir=build/wheel . \
	    || { echo 'make: the build failed; the first error above says where' >&2; exit 1; }
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.build
	@echo 'make: installing what $< names'
	@grep -v '^torch==' $< > $(VENV)/requirements.txt
	@cp requirements-build.txt $(VENV)
	@$(PIP) install -q --no-compile -r $(VENV)/requirements.txt || $(call NO_INDEX,$<)
	@rm -f $(VENV)/.no-torch
	@echo "make: installing $(TORCH)"
	@$(PIP) install -q --no-compile '$(TORCH)' || touch $(VENV)/.no-torch
	@touch $@

package: deps $(VENV)/.package
dev: deps $(VENV)/.dev

demo: package
	$(BIN)/ucm demo $(ARGS)

test: dev package check docs native pytest packages-short

check: style types

style: dev
	$(BIN)/ruff check --extend-exclude build .
	$(BIN)/ruff format --check --extend-exclude build .
	$(BIN)/clang-format --dry-run -Werror $(STYLED_C)

types: dev
	$(BIN)/mypy

native: native-asan native-tsan

# All files of a layer are compiled as one, in a third of the time; what debuggers want beyond lines
# would take a third more. Another compiler warns of other things: only CI stops at that.
SANITIZED := -Doptimization=1 -Dc_args=-g1 -Dcpp_args=-g1
native-asan: MESON_ARGS := $(SANITIZED) -Db_sanitize=address,undefined
native-tsan: MESON_ARGS := $(SANITIZED) -Db_sanitize=thread $(if $(CI),-Dwerror=true)
native-plain native-asan native-tsan: dev
	@test -f build/$@/build.ninja || $(IN_VENV) $(BIN)/meson setup build/$@ \
	    -Dpython=false -Dtests=true --unity=on --unity-size=20 $(MESON_ARGS)
	$(IN_VENV) $(BIN)/meson test -C build/$@ --print-errorlogs

pytest: dev package
	@.ci/deps '$(PYTHON)' fuzz neon
	@if test -f $(VENV)/.no-torch; then \
	    echo 'make: $(TORCH) cannot be had here: the tests that need it are left out'; \
	fi
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

# Packages as their users have them: an environment with the wheel, and nothing of this checkout.
PACKAGES := $(CURDIR)/$(VENV)-packages
packages: HOW = $(ARGS)
packages-short: HOW = --short
packages packages-short: wheel
	@.ci/deps '$(PYTHON)' packages
	$(BIN)/python tests/packages/run.py --folder $(PACKAGES) --wheel build/dist/*.whl $(HOW)

# ARGS=--large: larger bounds in full, half an hour; ARGS=--deep: still larger ones, not in full
model: deps
	$(PYTHON) tests/model/run.py $(ARGS)

neon:
	@.ci/deps '$(PYTHON)' neon
	$(PYTHON) tests/neon/run.py

# ARGS="--seconds 600": longer; ARGS=--merge: keep what was found in tests/fuzz/corpus
fuzz:
	@.ci/deps '$(PYTHON)' fuzz
	$(PYTHON) tests/fuzz/run.py $(ARGS)

docs: dev package
	$(BIN)/sphinx-build -q -E -W --keep-going -c docs -d build/doctrees . build/docs
	@echo 'make: the documentation is build/docs/index.html'

bench: dev package
	$(IN_VENV) $(BIN)/python benchmarks/run.py $(ARGS)

bench-posix: dev package
	$(IN_VENV) $(BIN)/python benchmarks/posix_peers.py $(ARGS)

bench-cache: dev package
	$(IN_VENV) $(BIN)/python benchmarks/cache_peers.py $(ARGS)

bench-codec: dev package
	$(IN_VENV) $(BIN)/python benchmarks/codec_peers.py $(ARGS)

# The package goes as a wheel into environments of others, and into the guest.
$(VENV)/.wheel: $(VENV)/.package
	@rm -rf build/dist
	@$(IN_VENV) $(PIP) wheel -q --no-build-isolation --no-deps --config-settings=build-dir=build/wheel -w build/dist .
	@touch $@

wheel: package $(VENV)/.wheel

e2e: E2E :=
e2e-small: E2E := --small
e2e e2e-small: wheel
	$(BIN)/python tests/e2e/run.py --folder $(VENV)-e2e --wheel build/dist/*.whl $(E2E) $(ARGS)

nfs: wheel
	$(BIN)/python tests/nfs/run.py --folder build/nfs --wheel build/dist/*.whl $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-e2e $(PACKAGES) build

# Every target first makes .venv from requirements.txt when it is missing or stale.

# Name in targets -> folder under tasks/ and configs/; a new task is one more line.
folder-translate := translation
folder-lm := language_model
folder-speech := speech
folder-caption := captioning

TASKS := $(patsubst folder-%,%,$(filter folder-%,$(.VARIABLES)))
PYTHON ?= python3
BIN := .venv/bin
HARDWARE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
REQUIREMENTS := requirements.txt$(if $(filter gpu,$(HARDWARE)), requirements-gpu.txt)
INSTALLED := .venv/.installed-$(HARDWARE)

# In a task's recipe $* is its name in targets.
config = $(or $(CONFIG),configs/$(folder-$*)/quickstart.yaml)
run = $(or $(RUN),runs/$(folder-$*)/$(basename $(notdir $(config))))
# RUN alone goes on with that run, under its own configuration.
resumes = $(and $(RUN),$(if $(CONFIG),,yes),$(wildcard $(RUN)/config.yaml))

.DEFAULT_GOAL := help
.PHONY: help venv tensorboard test test-slow bench horizon lint $(foreach verb,train evaluate predict,$(TASKS:%=$(verb)-%))

## help: list the targets
help:
	@awk -v tasks="$(TASKS)" -F ': ' '/^## / { \
		name = substr($$1, 4); count = split(name ~ /TASK/ ? tasks : "-", list, " "); \
		for (i = 1; i <= count; i++) { shown = name; sub(/TASK/, list[i], shown); printf "%-20s %s\n", shown, $$2 } \
	}' $(MAKEFILE_LIST)

## train-TASK: train or go on, evaluate, report (CONFIG=file.yaml RUN=folder ARGS="key=value ...")
$(TASKS:%=train-%): train-%: $(INSTALLED)
	$(BIN)/python -m tasks.$(folder-$*) train $(if $(resumes),,--config '$(config)') --run '$(run)' $(ARGS)

## evaluate-TASK: decode and score a split of a run (RUN=folder ARGS="--split valid")
$(TASKS:%=evaluate-%): evaluate-%: $(INSTALLED)
	$(BIN)/python -m tasks.$(folder-$*) evaluate --run '$(run)' $(ARGS)

## predict-TASK: apply a run to stdin, results on stdout (RUN=folder ARGS="file ...")
$(TASKS:%=predict-%): predict-%: $(INSTALLED)
	@$(BIN)/python -m tasks.$(folder-$*) predict --run '$(run)' $(ARGS)

## tensorboard: watch the runs in a browser (RUN=folder for one, ARGS="--port 6007")
tensorboard: $(INSTALLED)
	$(BIN)/tensorboard --logdir '$(or $(RUN),runs)' $(ARGS)

## test: the fast tests, two at a time (ARGS="-k name -n 8")
test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(ARGS)

## test-slow: the tests that train models
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ARGS)

## bench: speed beside PyTorch, which has to be installed first (ARGS="--pairs 3")
bench: $(INSTALLED)
	$(BIN)/python bench/recurrent.py $(ARGS)
	$(BIN)/python bench/language_model.py $(ARGS)
	$(BIN)/python bench/speech.py $(ARGS)

## horizon: how far back each cell remembers, as a table and horizon.png (ARGS="--train copy")
horizon: $(INSTALLED)
	@TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m shared.recurrent.horizon $(ARGS)

## lint: style and format
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

## venv: make .venv, with CUDA's packages where there is an NVIDIA GPU
venv: $(INSTALLED)

# The stamp goes first and comes back last: an interrupted installation leaves none and is made anew from nothing.
$(INSTALLED): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo "error: needs Python 3.11 to 3.13, but $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.12" >&2; \
		exit 2; }
	@echo "making .venv from $(REQUIREMENTS); the first time takes minutes" >&2
	@if [ -e $@ ] && rm $@ && $(BIN)/python -c ''; then :; else rm -rf .venv && $(PYTHON) -m venv .venv >&2; fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(REQUIREMENTS:%=-r %) </dev/null >&2
	@touch $@

# STACK=onedl (default) or openmmlab: the distribution of mmdet. PYTHON: the interpreter that the environment is made from. TORCH: a version.
STACK ?= onedl
PYTHON ?= python3
TORCH ?= 2.13.0
WORK_DIR ?= work_dirs/demo
RUN := .venv/$(STACK)/bin/python

.PHONY: environment demo test test-slow

environment:
	$(PYTHON) tools/environment/prepare.py --stack $(STACK) --torch $(TORCH)

# DATA: a COCO-format folder (annotations/train.json, annotations/val.json, images/); without it, textured shapes are made.
demo: environment
	$(RUN) tools/demo.py --work-dir $(WORK_DIR) $(if $(DATA),--data $(DATA))

test: environment
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest

# What takes longer: the built wheel in an environment of its own, and trainings.
test-slow: environment
	$(RUN) -m pytest -m slow

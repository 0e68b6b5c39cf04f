# STACK=onedl (default) or openmmlab: the distribution of mmdet. PYTHON: the interpreter that the environment is made from. TORCH: a version.
# WHEELS: a folder or an address with prebuilt wheels of mmcv (pip's find-links); mmcv is compiled where none fits.
STACK ?= onedl
PYTHON ?= python3
TORCH ?= 2.13.0
# DETECTRON2: a folder or an address of its source.
DETECTRON2 ?= git+https://github.com/facebookresearch/detectron2
WORK_DIR ?= work_dirs/demo
# Recipes read these from the environment, so that blanks and quotes in them do no harm. Below their defaults: `?=` leaves an exported one alone.
export PYTHON TORCH WHEELS DATA WORK_DIR DETECTRON2
# Processes that share the tests, a file at a time, each with one thread: more would wait for each other. If one dies, the others would wait
# for it for ever, so it is not started again.
JOBS ?= 2
TEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0
RUN := .venv/$(STACK)/bin/python

.PHONY: environment demo test test-slow test-detectron2

environment:
	"$$PYTHON" tools/environment/prepare.py --stack $(STACK) --torch "$$TORCH" $(if $(WHEELS),--wheels "$$WHEELS")

# DATA: a COCO-format folder (annotations/train.json, annotations/val.json, images/); without it, textured shapes are made.
demo: environment
	$(RUN) tools/demo.py --work-dir "$$WORK_DIR" $(if $(DATA),--data "$$DATA")

# Types are checked against the annotations of the default torch: they differ between versions.
test: environment
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(if $(filter 2.13.0,$(TORCH)),$(RUN) -m mypy)
	.venv/$(STACK)/bin/lint-imports --no-cache
	$(TEST)

# What takes longer: the built wheel in an environment of its own, and trainings.
test-slow: environment
	$(TEST) -m slow

# In an environment of its own, without mmdet: the other tests' conftest.py needs mmdet.
test-detectron2:
	"$$PYTHON" tools/environment/prepare_detectron2.py --detectron2 "$$DETECTRON2" --torch "$$TORCH"
	OMP_NUM_THREADS=1 .venv/detectron2/bin/python -m pytest --confcutdir tests/detectron2 tests/detectron2 fca_mmdet/detectron2

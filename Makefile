# bonecaffe: `make demo` and `make test` are complete on a fresh Debian 12 with git and make; `make help` lists the rest.

RUN     ?= runs/paper
RECIPE  ?=
IMAGES  ?= data/images
AGES    ?= data/ages.csv
AGES_IN_YEARS  ?=
AGES_IN_MONTHS ?=
POINTS  ?= data/points.csv
WEIGHTS ?=
GPU     ?=
FAST    ?=
TRAIN   ?=
TEST    ?=
SEED    ?=
LABELS  ?=
ORIGIN  ?=
SUGGEST ?=
SHEET   ?=
LOCATOR ?=
FULL    ?=
export CAFFE_ROOT CAFFE_SOURCE CUDA_ARCH CUDA_HOME CUDNN_ROOT NCCL_ROOT

VENV      := .venv
BONECAFFE := $(VENV)/bin/bonecaffe
PYTHON    := $(VENV)/bin/python
DEMO      := runs/demo

.PHONY: help setup caffe caffe-check demo smoke annotate locate prepare train evaluate predict test sweep lint mutants bench prototxt pictures clean
.DEFAULT_GOAL := help

help:                ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup:               ## install everything: Debian's packages, .venv, Caffe (4 minutes the first time)
	@scripts/setup.sh

caffe:               ## the same; GPU=1 builds Caffe for NVIDIA GPUs, GPU=0 for the CPU; FAST=0 without our loops for all cores [CUDA_ARCH="86 89"]
	@BONECAFFE_GPU=$(GPU) BONECAFFE_FAST=$(FAST) scripts/setup.sh caffe

caffe-check: setup   ## build and run Caffe's own C++ tests against the Caffe that was built (3 minutes)
	@BONECAFFE_GPU=$$(cat $(VENV)/share/bonecaffe/gpu) BONECAFFE_FAST=$$(cat $(VENV)/share/bonecaffe/fast) \
	  $(PYTHON) scripts/build_caffe.py --check

demo: setup          ## the whole pipeline on phantoms on the CPU, ends with the path of report.html
	@test -f $(DEMO)-data/ages.csv || { rm -rf $(DEMO)-data; $(BONECAFFE) phantom $(DEMO)-data --count 500 --size 700x910; }
	@$(BONECAFFE) prepare $(DEMO) --images $(DEMO)-data/images --ages $(DEMO)-data/ages.csv --points $(DEMO)-data/points.csv --recipe demo
	@$(BONECAFFE) train $(DEMO) $$(ls $(DEMO)/snapshots/*.caffemodel >/dev/null 2>&1 && echo --resume)
	@$(BONECAFFE) evaluate $(DEMO)

smoke: setup         ## the CI smoke test: a tiny LMDB, CPU mode, the paper's full-size net and the demo's
	@$(PYTHON) -m pytest -q tests/test_smoke.py --doctest-modules

annotate: setup      ## IMAGES POINTS [SUGGEST] -> the seven points, marked in your browser
	@$(BONECAFFE) annotate "$(IMAGES)" --points "$(POINTS)" $(if $(SUGGEST),--suggest "$(SUGGEST)")

locate: setup        ## IMAGES POINTS [SHEET LOCATOR] -> the seven points, found
	@$(BONECAFFE) locate "$(IMAGES)" --points "$(POINTS)" $(if $(SHEET),--sheet "$(SHEET)") $(if $(LOCATOR),--locator "$(LOCATOR)")

prepare: setup       ## RUN RECIPE IMAGES AGES POINTS [TRAIN TEST SEED LABELS ORIGIN AGES_IN_YEARS=1] -> LMDBs
	@$(BONECAFFE) prepare "$(RUN)" --images "$(IMAGES)" --ages "$(AGES)" --points "$(POINTS)" $(if $(RECIPE),--recipe "$(RECIPE)") \
	  $(if $(TRAIN),--train $(TRAIN)) $(if $(TEST),--test $(TEST)) $(if $(SEED),--seed $(SEED)) $(if $(LABELS),--labels $(LABELS)) $(if $(ORIGIN),--origin $(ORIGIN)) \
	  $(if $(filter-out 0,$(AGES_IN_YEARS)),--ages-in-years) $(if $(filter-out 0,$(AGES_IN_MONTHS)),--ages-in-months)

train: setup         ## RUN [WEIGHTS] [GPU=0 | 0,1 | all | cpu; else as before, or as the recipe says] [RESUME=1] -> snapshots
	@$(BONECAFFE) train "$(RUN)" $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(filter cpu,$(GPU)),--cpu,$(if $(GPU),--gpu $(GPU))) $(if $(RESUME),--resume)

evaluate: setup      ## RUN -> metrics, figures, report.html
	@$(BONECAFFE) evaluate "$(RUN)"

predict: setup       ## RUN IMAGES=file or folder... [POINTS; else they are found, by LOCATOR] -> months
	@$(BONECAFFE) predict "$(RUN)" $(IMAGES) $(if $(filter command environment,$(origin POINTS)),--points "$(POINTS)") $(if $(LOCATOR),--locator "$(LOCATOR)")

prototxt: setup      ## write prototxt/ again from the recipes
	@for recipe in paper demo smoke; do $(BONECAFFE) prototxt --out prototxt/$$recipe --recipe $$recipe; done

pictures: setup      ## draw the pictures of README and docs again
	@$(PYTHON) scripts/pictures.py

test: setup          ## all tests, on the real Caffe and in a real browser
	@scripts/setup.sh browser
	@$(PYTHON) -m pytest

sweep: setup         ## the tests as on other machines: each OpenBLAS kernel, ignored signals, an ordinary user, busy cores [FULL=1]
	@scripts/setup.sh browser
	@scripts/sweep_tests.sh $(if $(FULL),--full)

lint: setup          ## ruff's rules and format, mypy's types
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[lint]' --constraint requirements.txt
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

mutants: setup       ## change the pure modules, one place at a time: do their tests notice? [ONLY=crop] (10 minutes on two cores)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[mutants]' --constraint requirements.txt
	@$(PYTHON) scripts/mutants.py $(ONLY)

bench: setup         ## benchmarks, as ratios measured side by side [ONLY="prepare train"]
	@$(PYTHON) -m scripts.bench $(ONLY)

clean:               ## remove the demo's runs (Caffe's cache and .venv stay)
	rm -rf $(DEMO) $(DEMO)-data

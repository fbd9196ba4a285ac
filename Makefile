# bonecaffe: `make demo` and `make test` are complete on a fresh Debian 12 with git and make; `make help` lists the rest.

RUN     ?= runs/paper
IMAGES  ?= data/images
AGES    ?= data/ages.csv
AGES_IN_YEARS  ?=
AGES_IN_MONTHS ?=
POINTS  ?= data/points.csv
DEMO    := runs/demo

# Spaces, quotes and $ in a variable's value reach the command unchanged. make does not expand the value, but reads $$ as
# $, as usual. $(call quoted,RUN) is the value as one shell word, $(call quoted_words,ONLY) quotes each of its words.
GIVEN := RUN RECIPE IMAGES AGES TEST_AGES POINTS WEIGHTS GPU FAST TRAIN TEST SEED SPLIT LABELS ORIGIN AGES_IN_YEARS \
  AGES_IN_MONTHS SUGGEST SHEET LOCATOR DICOM_ID RESUME FULL ONLY DEMO CAFFE_ROOT CAFFE_SOURCE CUDA_ARCH CUDA_HOME CUDNN_ROOT NCCL_ROOT BUNDLE PYTHON
UNKNOWN := $(strip $(foreach name,$(filter-out $(GIVEN) -%,$(.VARIABLES)),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
$(if $(UNKNOWN),$(error no target reads $(UNKNOWN); `make help` lists the variables of each target. Put a variable of another program in front of make: $(firstword $(UNKNOWN))=... make))
OWN_POINTS := $(filter command environment,$(origin POINTS))
dollar := $$
$(foreach name,$(GIVEN),$(eval override $(name) := $$(subst $$(dollar)$$(dollar),$$(dollar),$$(value $(name)))))
quoted = '$(subst ','\'',$($(1)))'
quoted_words = $(foreach each,$(subst ','\'',$($(1))),'$(each)')
option = $(if $($(2)),$(1) $(call quoted,$(2)))
flag = $(if $(filter-out 0,$($(2))),$(1))
export CAFFE_ROOT CAFFE_SOURCE CUDA_ARCH CUDA_HOME CUDNN_ROOT NCCL_ROOT PYTHON

VENV      := .venv
BONECAFFE := BONECAFFE_MAKE=1 $(VENV)/bin/bonecaffe
VENV_PYTHON := $(VENV)/bin/python

.PHONY: help setup caffe caffe-check caffe-bundle gpu-check demo smoke annotate locate prepare train evaluate predict test sweep lint mutants bench prototxt pictures reference clean
.DEFAULT_GOAL := help

help:                ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup:               ## install everything: Debian packages, .venv, Caffe (5 minutes the first time)
	@scripts/setup.sh

caffe:               ## choose Caffe's build and install again; GPU=1 builds Caffe for NVIDIA GPUs, GPU=0 for the CPU, FAST=0 with Caffe's own one-core loops [CUDA_ARCH="86 89"]
	@BONECAFFE_GPU=$(call quoted,GPU) BONECAFFE_FAST=$(call quoted,FAST) scripts/setup.sh caffe

caffe-check: setup   ## run Caffe's own C++ tests on the Caffe that was built (3 minutes)
	@BONECAFFE_GPU="$$(cat $(VENV)/share/bonecaffe/gpu)" BONECAFFE_FAST="$$(cat $(VENV)/share/bonecaffe/fast)" CUDA_ARCH="$$(cat $(VENV)/share/bonecaffe/arch)" \
	  $(VENV_PYTHON) scripts/build_caffe.py --check

caffe-bundle: setup  ## pack that Caffe and its libraries into one archive, for machines without root [BUNDLE=folder] (2 minutes)
	@$(VENV_PYTHON) scripts/bundle_caffe.py --out $(call quoted,BUNDLE)

gpu-check: setup     ## compare the GPU with the CPU and measure its speed; writes a report into runs/gpu-check (10 minutes) [GPU=1 for the second GPU, cpu to try the check]
	@test $(call quoted,GPU) = cpu || test -f runs/gpu-check-data.tar.xz || { mkdir -p runs; \
	  $(VENV_PYTHON) scripts/gpu_check.py prepare --out runs/gpu-check-data.tar.xz; }
	@$(VENV_PYTHON) scripts/gpu_check.py --work runs/gpu-check \
	  $(if $(filter cpu,$(GPU)),--cpu --quick,$(call option,--gpu,GPU) --data runs/gpu-check-data.tar.xz)

demo: setup          ## run the whole pipeline on synthetic hands, on the CPU; prints the path of report.html
	@test -f $(call quoted,DEMO)-data/ages.csv || { rm -rf -- $(call quoted,DEMO)-data; $(BONECAFFE) phantom $(call quoted,DEMO)-data --count 500 --size 700x910; }
	@$(BONECAFFE) prepare $(call quoted,DEMO) --images $(call quoted,DEMO)-data/images --ages $(call quoted,DEMO)-data/ages.csv --points $(call quoted,DEMO)-data/points.csv --recipe demo
	@$(BONECAFFE) train $(call quoted,DEMO) $$(ls -- $(call quoted,DEMO)/snapshots/*.caffemodel >/dev/null 2>&1 && echo --resume)
	@$(BONECAFFE) evaluate $(call quoted,DEMO)

smoke: setup         ## run the short test for CI: a tiny LMDB on the CPU, with the paper's full-size net and the demo's
	@$(VENV_PYTHON) -m pytest -q tests/test_smoke.py --doctest-modules

annotate: setup      ## IMAGES POINTS [SUGGEST DICOM_ID=uid] -> mark the seven points in your browser
	@$(BONECAFFE) annotate $(call quoted,IMAGES) --points $(call quoted,POINTS) $(call option,--suggest,SUGGEST) $(call option,--dicom-id,DICOM_ID)

locate: setup        ## IMAGES POINTS [SHEET LOCATOR DICOM_ID=uid] -> find the seven points automatically
	@$(BONECAFFE) locate $(call quoted,IMAGES) --points $(call quoted,POINTS) $(call option,--sheet,SHEET) $(call option,--locator,LOCATOR) $(call option,--dicom-id,DICOM_ID)

# IMAGES is the name of one folder. If that does not exist, IMAGES is a list as in a shell, provided that every folder exists.
prepare: setup       ## RUN RECIPE IMAGES (one folder, or several: "a 'b c'") AGES POINTS [TEST_AGES SPLIT TRAIN TEST SEED LABELS ORIGIN AGES_IN_YEARS=1 DICOM_ID=uid] -> LMDBs
	@images=$(call quoted,IMAGES); set -- "$$images"; \
	  if ! [ -e "$$images" ]; then case $$images in *[\`\$$\;\&\|\<\>\(\)\\]*) ;; \
	    *) if (eval "set -- $$images") 2>/dev/null; then eval "set -- $$images"; fi ;; esac; \
	    for each do [ -d "$$each" ] || set -- "$$images"; done; [ "$$#" != 0 ] || set -- "$$images"; fi; \
	  for each do set -- "$$@" --images "$$each"; shift; done; \
	  $(BONECAFFE) prepare $(call quoted,RUN) "$$@" --ages $(call quoted,AGES) --points $(call quoted,POINTS) $(call option,--recipe,RECIPE) \
	  $(call option,--test-ages,TEST_AGES) $(call option,--split,SPLIT) $(call option,--train,TRAIN) $(call option,--test,TEST) $(call option,--seed,SEED) $(call option,--labels,LABELS) $(call option,--origin,ORIGIN) $(call option,--dicom-id,DICOM_ID) \
	  $(call flag,--ages-in-years,AGES_IN_YEARS) $(call flag,--ages-in-months,AGES_IN_MONTHS)

train: setup         ## RUN [WEIGHTS] [GPU=0 | 0,1 | all | cpu; default: as in the run's last training, or the recipe's] [RESUME=1] -> snapshots
	@$(BONECAFFE) train $(call quoted,RUN) $(call option,--weights,WEIGHTS) $(if $(filter cpu,$(GPU)),--cpu,$(call option,--gpu,GPU)) $(if $(RESUME),--resume)

evaluate: setup      ## RUN -> metrics, figures, report.html
	@$(BONECAFFE) evaluate $(call quoted,RUN)

predict: setup       ## RUN IMAGES (a file or folder, or several: "a.png 'b c.png' d/*.png") [POINTS, otherwise LOCATOR finds them; DICOM_ID=uid] -> age in months
	@images=$(call quoted,IMAGES); if [ -e "$$images" ]; then set -- "$$images"; \
	  else case $$images in *[\'\"]*) eval "set -- $$images" ;; *) set -- $$images ;; esac; fi; \
	  $(BONECAFFE) predict $(call quoted,RUN) "$$@" $(if $(OWN_POINTS),--points $(call quoted,POINTS)) $(call option,--locator,LOCATOR) $(call option,--dicom-id,DICOM_ID)

prototxt: setup      ## rewrite prototxt/ from the recipes
	@for recipe in paper demo smoke; do $(BONECAFFE) prototxt --out prototxt/$$recipe --recipe $$recipe; done

pictures: setup      ## redraw the pictures of README and docs; trains the demo for its report (5 minutes)
	@scripts/setup.sh browser
	@$(VENV_PYTHON) scripts/pictures.py

reference: setup     ## rewrite docs/reference/cli.md and recipe.md from --help and the recipe's fields
	@$(VENV_PYTHON) scripts/reference.py

test: setup          ## run all tests, on the real Caffe and in a real browser
	@scripts/setup.sh browser
	@$(VENV_PYTHON) -m pytest

sweep: setup         ## run the tests as on other machines: each OpenBLAS kernel, ignored signals, not as root, busy cores [FULL=1]
	@scripts/setup.sh browser
	@scripts/sweep_tests.sh $(if $(FULL),--full)

lint: setup          ## check style, format and types with ruff and mypy
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[lint]' --constraint requirements.txt
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy

mutants: setup       ## change the pure modules in one place at a time and count the changes that no test notices [ONLY=crop] (10 minutes)
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[mutants]' --constraint requirements.txt
	@$(VENV_PYTHON) scripts/mutants.py $(call quoted_words,ONLY)

bench: setup         ## run the benchmarks; each compares two programs in the same minute [ONLY="prepare train"]
	@$(VENV_PYTHON) -m scripts.bench $(call quoted_words,ONLY)

clean:               ## remove the demo's files (the built Caffe and .venv stay)
	rm -rf -- $(call quoted,DEMO) $(call quoted,DEMO)-data

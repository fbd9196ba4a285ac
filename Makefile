# bonecaffe: `make demo` and `make test` are complete on a fresh Debian 12 with git and make; `make help` lists the rest.

RUN     ?= runs/paper
IMAGES  ?= data/images
AGES    ?= data/ages.csv
AGES_IN_YEARS  ?=
AGES_IN_MONTHS ?=
POINTS  ?= data/points.csv
DEMO    := runs/demo

# Blanks, quotes and $ in what a user gives reach the command as they are. make does not expand a value, but takes $$ for
# $ as it does elsewhere; $(call quoted,RUN) is the value as one word of the shell, $(call quoted_words,ONLY) each of its words.
GIVEN := RUN RECIPE IMAGES AGES TEST_AGES POINTS WEIGHTS GPU FAST TRAIN TEST SEED SPLIT LABELS ORIGIN AGES_IN_YEARS \
  AGES_IN_MONTHS SUGGEST SHEET LOCATOR RESUME FULL ONLY DEMO CAFFE_ROOT CAFFE_SOURCE CUDA_ARCH CUDA_HOME CUDNN_ROOT NCCL_ROOT
OWN_POINTS := $(filter command environment,$(origin POINTS))
dollar := $$
$(foreach name,$(GIVEN),$(eval override $(name) := $$(subst $$(dollar)$$(dollar),$$(dollar),$$(value $(name)))))
quoted = '$(subst ','\'',$($(1)))'
quoted_words = $(foreach each,$(subst ','\'',$($(1))),'$(each)')
option = $(if $($(2)),$(1) $(call quoted,$(2)))
flag = $(if $(filter-out 0,$($(2))),$(1))
export CAFFE_ROOT CAFFE_SOURCE CUDA_ARCH CUDA_HOME CUDNN_ROOT NCCL_ROOT

VENV      := .venv
BONECAFFE := BONECAFFE_MAKE=1 $(VENV)/bin/bonecaffe
PYTHON    := $(VENV)/bin/python

.PHONY: help setup caffe caffe-check gpu-check demo smoke annotate locate prepare train evaluate predict test sweep lint mutants bench prototxt pictures reference clean
.DEFAULT_GOAL := help

help:                ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup:               ## install everything: Debian's packages, .venv, Caffe (4 minutes the first time)
	@scripts/setup.sh

caffe:               ## the same; GPU=1 builds Caffe for NVIDIA GPUs, GPU=0 for the CPU; FAST=0 without our loops for all cores [CUDA_ARCH="86 89"]
	@BONECAFFE_GPU=$(call quoted,GPU) BONECAFFE_FAST=$(call quoted,FAST) scripts/setup.sh caffe

caffe-check: setup   ## build and run Caffe's own C++ tests against the Caffe that was built (3 minutes)
	@BONECAFFE_GPU="$$(cat $(VENV)/share/bonecaffe/gpu)" BONECAFFE_FAST="$$(cat $(VENV)/share/bonecaffe/fast)" \
	  $(PYTHON) scripts/build_caffe.py --check

gpu-check: setup     ## does the GPU compute what the CPU does, and how fast? A report in runs/gpu-check (10 minutes) [GPU=1, or cpu for a quick try of the check]
	@test $(call quoted,GPU) = cpu || test -f runs/gpu-check-data.tar.xz || { mkdir -p runs; \
	  $(PYTHON) scripts/gpu_check.py prepare --out runs/gpu-check-data.tar.xz; }
	@$(PYTHON) scripts/gpu_check.py --work runs/gpu-check \
	  $(if $(filter cpu,$(GPU)),--cpu --quick,$(call option,--gpu,GPU) --data runs/gpu-check-data.tar.xz)

demo: setup          ## the whole pipeline on phantoms on the CPU, ends with the path of report.html
	@test -f $(call quoted,DEMO)-data/ages.csv || { rm -rf -- $(call quoted,DEMO)-data; $(BONECAFFE) phantom $(call quoted,DEMO)-data --count 500 --size 700x910; }
	@$(BONECAFFE) prepare $(call quoted,DEMO) --images $(call quoted,DEMO)-data/images --ages $(call quoted,DEMO)-data/ages.csv --points $(call quoted,DEMO)-data/points.csv --recipe demo
	@$(BONECAFFE) train $(call quoted,DEMO) $$(ls -- $(call quoted,DEMO)/snapshots/*.caffemodel >/dev/null 2>&1 && echo --resume)
	@$(BONECAFFE) evaluate $(call quoted,DEMO)

smoke: setup         ## the CI smoke test: a tiny LMDB, CPU mode, the paper's full-size net and the demo's
	@$(PYTHON) -m pytest -q tests/test_smoke.py --doctest-modules

annotate: setup      ## IMAGES POINTS [SUGGEST] -> the seven points, marked in your browser
	@$(BONECAFFE) annotate $(call quoted,IMAGES) --points $(call quoted,POINTS) $(call option,--suggest,SUGGEST)

locate: setup        ## IMAGES POINTS [SHEET LOCATOR] -> the seven points, found
	@$(BONECAFFE) locate $(call quoted,IMAGES) --points $(call quoted,POINTS) $(call option,--sheet,SHEET) $(call option,--locator,LOCATOR)

# IMAGES is one folder by its name. Where there is none of this name, it is several as in a shell, if all of them are there.
prepare: setup       ## RUN RECIPE IMAGES (or several: "a 'b c'") AGES POINTS [TEST_AGES SPLIT TRAIN TEST SEED LABELS ORIGIN AGES_IN_YEARS=1] -> LMDBs
	@images=$(call quoted,IMAGES); set -- "$$images"; \
	  if ! [ -e "$$images" ]; then case $$images in *[\`\$$\;\&\|\<\>\(\)\\]*) ;; \
	    *) if (eval "set -- $$images") 2>/dev/null; then eval "set -- $$images"; fi ;; esac; \
	    for each do [ -d "$$each" ] || set -- "$$images"; done; [ "$$#" != 0 ] || set -- "$$images"; fi; \
	  for each do set -- "$$@" --images "$$each"; shift; done; \
	  $(BONECAFFE) prepare $(call quoted,RUN) "$$@" --ages $(call quoted,AGES) --points $(call quoted,POINTS) $(call option,--recipe,RECIPE) \
	  $(call option,--test-ages,TEST_AGES) $(call option,--split,SPLIT) $(call option,--train,TRAIN) $(call option,--test,TEST) $(call option,--seed,SEED) $(call option,--labels,LABELS) $(call option,--origin,ORIGIN) \
	  $(call flag,--ages-in-years,AGES_IN_YEARS) $(call flag,--ages-in-months,AGES_IN_MONTHS)

train: setup         ## RUN [WEIGHTS] [GPU=0 | 0,1 | all | cpu; else as before, or as the recipe says] [RESUME=1] -> snapshots
	@$(BONECAFFE) train $(call quoted,RUN) $(call option,--weights,WEIGHTS) $(if $(filter cpu,$(GPU)),--cpu,$(call option,--gpu,GPU)) $(if $(RESUME),--resume)

evaluate: setup      ## RUN -> metrics, figures, report.html
	@$(BONECAFFE) evaluate $(call quoted,RUN)

predict: setup       ## RUN IMAGES=file or folder, or several: IMAGES="a.png 'b c.png' d/*.png" [POINTS; else they are found, by LOCATOR] -> months
	@images=$(call quoted,IMAGES); if [ -e "$$images" ]; then set -- "$$images"; \
	  else case $$images in *[\'\"]*) eval "set -- $$images" ;; *) set -- $$images ;; esac; fi; \
	  $(BONECAFFE) predict $(call quoted,RUN) "$$@" $(if $(OWN_POINTS),--points $(call quoted,POINTS)) $(call option,--locator,LOCATOR)

prototxt: setup      ## write prototxt/ again from the recipes
	@for recipe in paper demo smoke; do $(BONECAFFE) prototxt --out prototxt/$$recipe --recipe $$recipe; done

pictures: setup      ## draw the pictures of README and docs again
	@$(PYTHON) scripts/pictures.py

reference: setup     ## write docs/reference/cli.md and recipe.md again from --help and the recipe's fields
	@$(PYTHON) scripts/reference.py

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
	@$(PYTHON) scripts/mutants.py $(call quoted_words,ONLY)

bench: setup         ## benchmarks, as ratios measured side by side [ONLY="prepare train"]
	@$(PYTHON) -m scripts.bench $(call quoted_words,ONLY)

clean:               ## remove the demo's runs (Caffe's cache and .venv stay)
	rm -rf -- $(call quoted,DEMO) $(call quoted,DEMO)-data

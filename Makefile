# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build of torch, by its exact pin and first: a range would pull gigabytes of CUDA packages. Where the plain
# package index has only the CUDA build, name the CPU index:
#   make run TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
# and on a GPU machine let the index decide: make run TORCH=torch
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=

.PHONY: help run test notebooks lint format bench contrast long rates sizes multipliers momenta placements remedies sweep factorial theory clean

SEEDS := 0 1 2

# Some variants, each with all seeds, into a folder, with options.
define train
	for variant in $(1); do \
	  $(BIN)/python experiments/run.py --variant $$variant --seeds $(SEEDS) --out $(2) $(3) --resume || exit; done
endef

help:
	@echo "make run        environment, then train and evaluate scale_visible on CPU (ARGS=... is passed on)"
	@echo "make test       environment, then every test"
	@echo "make notebooks  execute the notebooks and compare with their stored outputs"
	@echo "make lint       ruff and mypy"
	@echo "make bench      speed and memory against a plain implementation"
	@echo "make contrast   what make run trains, and three variants beside it, three seeds, into results/contrast (20 minutes)"
	@echo "make long       the contrast at 1,000 steps, with and without tie and N(0, 1), into results/long (two hours or three)"
	@echo "make rates      two pairs of variants at three learning rates and with warm-up, into results/rates (an hour or two)"
	@echo "make sizes      the untied pair at other widths and depths, into results/sizes (four to six hours)"
	@echo "make multipliers  two N(0, 1) pairs with their embeddings multiplied, into results/multipliers (an hour or two)"
	@echo "make momenta    the same pairs with less momentum, into results/momenta (an hour or less)"
	@echo "make placements the same pairs with a loss after some loops alone, into results/placements (an hour)"
	@echo "make remedies   blind models trained on with each remedy that their audits name, into results/remedies (an hour)"
	@echo "make sweep      every variant, three seeds, measured and reported, into results/cpu (two to three hours)"
	@echo "make factorial  the designed experiment on what else moves the norm, into results/factorial (an hour)"
	@echo "make theory     the README's table of propositions (a minute) and the long profile (an hour)"

# One environment for everything, made anew when the requirements change.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

run: $(VENV)/.installed
	$(BIN)/python experiments/run.py --variant scale_visible --resume $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(ARGS)

# One thread a kernel: those of two workers, with a thread a core each, would mostly wait for each other.
notebooks: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p nbval.plugin --nbval proofs_notebooks

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: run
	$(BIN)/python benchmarks/training.py all
	$(BIN)/python benchmarks/monitor.py --out results/benchmarks/monitor/cpu.json
	$(BIN)/python benchmarks/monitor.py --publish
	$(BIN)/python benchmarks/audit.py --runs runs/scale_visible-0 --out results/benchmarks/audit/cpu.json
	$(BIN)/python benchmarks/audit.py --publish
	$(BIN)/python benchmarks/planted.py
	$(BIN)/python experiments/readme.py planted results/audit/planted.md

contrast: $(VENV)/.installed
	$(call train,scale_visible scale_invariant norm_penalty scale_removing,runs/contrast)
	$(BIN)/python experiments/publish.py runs/contrast results/contrast

long: $(VENV)/.installed
	$(call train,scale_visible scale_invariant norm_penalty untied_small_init_scale_visible \
	  untied_small_init_scale_invariant,runs/long,--steps 1000)
	$(BIN)/python experiments/report.py runs/long -o results/long/report
	$(BIN)/python experiments/publish.py runs/long results/long

rates sizes multipliers momenta placements: SEEDS := 3 4 5
multipliers momenta placements: PAIRS := scale_invariant scale_visible untied_scale_invariant untied_scale_visible

rates: PAIRS := scale_invariant scale_visible untied_small_init_scale_invariant untied_small_init_scale_visible
rates: $(VENV)/.installed
	$(call train,$(PAIRS),runs/rates/1e-3,--steps 200 --learning-rate 1e-3)
	$(call train,$(PAIRS),runs/rates/3e-3,--steps 200 --learning-rate 3e-3)
	$(call train,$(PAIRS),runs/rates/3e-3-warmup,--steps 200 --learning-rate 3e-3 --warmup-steps 50)
	$(call train,$(PAIRS),runs/rates/3e-4,--steps 200 --learning-rate 3e-4)
	$(BIN)/python experiments/grid.py rates runs/rates

sizes: PAIRS := untied_small_init_scale_invariant untied_small_init_scale_visible
sizes: $(VENV)/.installed
	$(call train,$(PAIRS),runs/sizes/d64-1e-3,--steps 200 --d-model 64 --learning-rate 1e-3)
	$(call train,$(PAIRS),runs/sizes/d64-2e-3,--steps 200 --d-model 64 --learning-rate 2e-3)
	$(call train,$(PAIRS),runs/sizes/d64-6e-3,--steps 200 --d-model 64 --learning-rate 6e-3)
	$(call train,$(PAIRS),runs/sizes/d256-5e-4,--steps 200 --d-model 256 --learning-rate 5e-4)
	$(call train,$(PAIRS),runs/sizes/d256-1e-3,--steps 200 --d-model 256 --learning-rate 1e-3)
	$(call train,$(PAIRS),runs/sizes/d256-1.5e-3,--steps 200 --d-model 256 --learning-rate 1.5e-3)
	$(call train,$(PAIRS),runs/sizes/d512-2.5e-4,--steps 200 --d-model 512 --learning-rate 2.5e-4)
	$(call train,$(PAIRS),runs/sizes/d512-1e-3,--steps 200 --d-model 512 --learning-rate 1e-3)
	$(call train,$(PAIRS),runs/sizes/d128-8-layers-1e-3,--steps 200 --num-layers 8 --learning-rate 1e-3)
	$(BIN)/python experiments/grid.py sizes runs/sizes results/rates

multipliers: $(VENV)/.installed
	$(call train,$(PAIRS),runs/multipliers/1,--steps 200 --learning-rate 1e-3)
	$(call train,$(PAIRS),runs/multipliers/4,--steps 200 --learning-rate 1e-3 --embedding-multiplier 4)
	$(call train,$(PAIRS),runs/multipliers/0.25,--steps 200 --learning-rate 1e-3 --embedding-multiplier 0.25)
	$(call train,$(PAIRS),runs/multipliers/0.0625,--steps 200 --learning-rate 1e-3 --embedding-multiplier 0.0625)
	$(BIN)/python experiments/grid.py multipliers runs/multipliers

momenta: $(VENV)/.installed
	$(call train,$(PAIRS),runs/momenta/0,--steps 200 --learning-rate 1e-3 --momentum 0)
	$(call train,$(PAIRS),runs/momenta/0.5,--steps 200 --learning-rate 1e-3 --momentum 0.5)
	$(BIN)/python experiments/grid.py momenta runs/momenta results/multipliers

placements: $(VENV)/.installed
	$(call train,$(PAIRS),runs/placements/last,--steps 200 --learning-rate 1e-3 --loop-weights 0 0 0 1)
	$(call train,$(PAIRS),runs/placements/first,--steps 200 --learning-rate 1e-3 --loop-weights 1 0 0 0)
	$(call train,$(PAIRS),runs/placements/all-but-first,--steps 200 --learning-rate 1e-3 --loop-weights 0 0.25 0.25 0.25)
	$(call train,$(PAIRS),runs/placements/all-but-last,--steps 200 --learning-rate 1e-3 --loop-weights 0.25 0.25 0.25 0)
	$(call train,$(PAIRS),runs/placements/last-0,--steps 200 --learning-rate 1e-3 --momentum 0 --loop-weights 0 0 0 1)
	$(BIN)/python experiments/grid.py placements runs/placements results/momenta results/multipliers

remedies: $(VENV)/.installed
	$(BIN)/python experiments/remedies.py

sweep: $(VENV)/.installed
	$(BIN)/python experiments/run.py --variant all --seeds $(SEEDS) --steps 200 --out runs/sweep --resume
	$(BIN)/python experiments/report.py runs/sweep -o results/cpu/report
	$(BIN)/python experiments/publish.py runs/sweep results/cpu
	$(BIN)/python experiments/readme.py claims results/cpu/report/claims.md
	$(BIN)/python experiments/screenshot.py results/cpu/report

factorial: $(VENV)/.installed
	$(BIN)/python experiments/run.py --variant factorial --seeds $(SEEDS) --steps 100 --snapshots 0 --out runs/factorial --resume
	$(BIN)/python experiments/publish.py runs/factorial results/factorial

theory: $(VENV)/.installed
	$(BIN)/python experiments/propositions.py
	$(BIN)/python experiments/long_profile.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

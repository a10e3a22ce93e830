# make train: a first language model.  make test: every check.  Both make .venv when it is not there yet.
# Variables: PYTHON (3.10 or newer), RANKS, RUN (folder of the run), KILLS, MINUTES, SECONDS.

PYTHON ?= python3
RANKS ?= 2
RUN ?= runs/quickstart-$(NOW)
KILLS ?= 200
MINUTES ?= 60
SECONDS ?= 60
NOW := $(shell date +%Y%m%d-%H%M%S)

VENV := .venv
PY := $(VENV)/bin/python
EXTRAS_train := mpi,plot
EXTRAS_test := dev
EXTRAS_docs := docs

.PHONY: help train test test-long chaos soak fuzz bench docs clean

help:
	@echo "make train      train a small model on python-docs with $(RANKS) ranks, plot it, let it write a text"
	@echo "make test       lint, type check, tests"
	@echo "make test-long  the few tests that take longest, a minute or two together"
	@echo "make chaos      kill training $(KILLS) times at random moments: nothing may be lost (docs/reliability.md)"
	@echo "make soak       train for $(MINUTES) minutes under kills, and watch the memory"
	@echo "make bench      the short benchmarks; rewrites docs/performance.md"
	@echo "make docs       the site, into site/; runs the lessons"
	@echo "make fuzz       throw broken and hostile files at every loader, for $(SECONDS) seconds each"
	@echo "make clean      remove what make made, but for data/ and runs/"

train: $(VENV)/installed-train
	$(VENV)/bin/mpirun -np $(RANKS) $(PY) -m train.wt103 --preset quickstart --data python-docs --run-dir $(RUN)
	$(PY) -m train.plot $(RUN)
	$(PY) -m train.generate $(RUN) --prompt "The function returns" --temperature 0.7

# One BLAS thread for each of the processes that test: more would only spin while they wait for each other. And
# bytecode is kept whatever the environment says: hundreds of processes start, each would compile all modules.
PYTEST := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --dist worksteal
test test-long: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/installed-test
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PYTEST) -m "not long"

test-long: $(VENV)/installed-test
	$(PYTEST) -m long

# Three kills are among the tests, ten kills and a short soak among the long ones. The soak takes some minutes more than
# MINUTES: its end is made up for.
chaos: $(VENV)/installed-train
	$(PY) -m benchmarks.chaos --kills $(KILLS) --out benchmarks/results/chaos.json --docs docs/reliability.md

soak: $(VENV)/installed-train
	$(PY) -m benchmarks.soak --minutes $(MINUTES) --out benchmarks/results/soak.json --docs docs/reliability.md

# Against PyTorch where it is installed: `.venv/bin/python -m pip install torch` puts it there.
bench: $(VENV)/installed-train
	$(PY) -m benchmarks.performance --short

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo "site/index.html"

# Every loader of a file in a process of its own; what is found stays in fuzz/.
EXTRAS_fuzz := dev,fuzz
fuzz: $(VENV)/installed-fuzz
	$(PY) tests/fuzz.py --seconds $(SECONDS)

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is renewed first: some that come with Python 3.10 cannot install in place. What the tests need includes
# what training needs. setuptools' warnings are about its own future.
$(VENV)/installed-%: setup.cfg pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --editable ".[$(EXTRAS_$*)]"
	@touch $@ $(VENV)/installed-train

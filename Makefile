# The commands of the project; `make help` lists them. Settings are variables: `make run DAYS=3 USERS=2000`.

.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
export DATASET DATA CHALLENGERS PRESET FROM TO DAYS USERS IMPRESSIONS SIMULATE REPROCESS PLAN
export AIRFLOW_PORT MLFLOW_PORT SPARK_PORT DOCS_PORT
export GPU PYTHON TENSORRT
# The environment's own programs (uv, ruff, java's friends of pyspark) before the machine's.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup run backfill status report new-dataset ui doctor test test-slow test-gpu check format kill-points drill pictures serve bench-attention bench-attention-gpu bench-tables bench-samples bench-train evidence lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## set the machine up: .venv from the lock, hstu_ops, Java, Delta's jars; a second call installs nothing
	@scripts/setup.sh

run: setup  ## the daily DAGs for consecutive days, then a table (FROM, TO or DAYS; DATASET and DATA; CHALLENGERS, USERS)
	@exec $(PY) -m scripts.run

backfill: setup  ## past days by Airflow's backfill, oldest first (FROM, TO or DAYS; REPROCESS=none|failed|completed; SIMULATE=1; PLAN=1 only says what it would do)
	@exec $(PY) -m scripts.backfill

status: setup  ## last day, champion, missing days, failed gates, immature labels, disk: one screen, nothing changes
	@exec $(PY) -m scripts.status

new-dataset: setup  ## a declaration, a module and a test to fill in, from a sample of one's own logs (NAME, FROM)
	@exec $(PY) -m scripts.new_dataset --name "$(NAME)" --from "$(FROM)"

ui: setup  ## Airflow, MLflow and data docs on loopback until Ctrl-C; prints the login
	@exec $(PY) -m scripts.ui

doctor:  ## check this machine and print the fix for whatever is wrong (DEPLOYMENT=1: a deployment's settings)
	@if [ -x $(PY) ]; then python=$(PY); else python="$$(scripts/setup.sh --find-python)"; fi; \
	exec "$$python" -m scripts.doctor $(if $(filter 1,$(DEPLOYMENT)),--deployment)

report: setup  ## the page of a day: gates, volumes, metrics with intervals, decision, lineage (DAY; DATASET)
	@$(if $(DAY),,$(error which day? make report DAY=2026-03-02))exec $(PY) -m model.report --dataset $(or $(DATASET),foodlog) --ds $(DAY)

test: setup  ## the tests, files side by side in WORKERS processes (2)
	@$(PY) -m pytest -q -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder

test-slow: setup  ## the slow tests: scheduled runs, backfills, kill points, clusters
	@$(PY) -m pytest -q -m slow --timeout 3600

test-gpu: setup  ## the tests that need an NVIDIA GPU
	@$(PY) -m pytest -q -m gpu --timeout 1200

check: setup  ## lint, format and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs .venv/bin/clang-format --dry-run --Werror

format: setup  ## format Python, C++ and CUDA code
	@$(PY) -m ruff check --fix-only -q .
	@$(PY) -m ruff format .
	@git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs .venv/bin/clang-format -i

kill-points: setup  ## kill every stage at every phase, run it again, compare; JSON in var/bench
	@mkdir -p var/bench
	@$(PY) -m tests.end_to_end.kill_points --out var/bench/kill_points.json

drill: setup  ## kill one step at random, run it again and show that nothing was lost (SEED=N for the same again)
	@$(PY) -m tests.end_to_end.kill_points --drill $(SEED) --options users=300 impressions-a-day=9000 bot-impressions=2100

pictures: setup  ## Airflow's pages of a failed day and of the day mended, as docs/operations.md shows them (Chromium)
	@$(PY) -m tests.end_to_end.pictures docs/pictures

serve: setup  ## the champion answers requests on loopback until Ctrl-C; prints a request to try (DATASET, PORT)
	@$(PY) -m model.publish --dataset $(or $(DATASET),foodlog) >/dev/null
	@exec $(PY) -m model.serve --dataset $(or $(DATASET),foodlog) --port $(or $(PORT),8080)

bench-attention: setup  ## benchmark of the operators on the CPU; JSON in var/bench
	@$(PY) -m benchmarks.attention --device cpu --out var/bench/attention_cpu.json

bench-attention-gpu: setup  ## the same on an NVIDIA GPU (PEER=module:function adds another kernel); JSON in var/bench
	@$(PY) -m benchmarks.attention --device cuda --out var/bench/attention_gpu.json $(addprefix --peer ,$(PEER))

bench-tables: setup  ## benchmark of dynamic tables against FBGEMM and TorchRec (DEVICE=cuda on a GPU); JSON in var/bench
	@$(PY) -m benchmarks.tables --device $(or $(DEVICE),cpu) --out var/bench/tables_$(or $(DEVICE),cpu).json

bench-samples: setup  ## benchmark of the sample builder against DuckDB; JSON in var/bench
	@$(PY) -m benchmarks.samples --out var/bench/samples.json

bench-train: setup  ## benchmark of the whole training step on an NVIDIA GPU (RANKS=N); JSON in var/bench
	@$(PY) -m torch.distributed.run --standalone --nproc-per-node $(or $(RANKS),1) -m benchmarks.train --out var/bench/train.json

evidence: setup  ## MTGR beside DLRMs, HSTU, LightGBM and its own ablations on foodlog, tuned alike; tables and docs/evidence.html
	@$(PY) -m uv pip install -q --no-deps --python $(PY) optuna==5.0.0 lightgbm==4.7.0
	@export MTGR_VAR=$(CURDIR)/var/evidence && $(PY) -m benchmarks.evidence.world && \
	$(PY) -m benchmarks.evidence.compare --dataset foodlog --learn 2026-03-17 2026-03-21 \
	  --choose 2026-03-22 2026-03-24 --test 2026-03-25 2026-03-26 --budget 3 && \
	$(PY) -m benchmarks.evidence.steps && $(PY) -m benchmarks.evidence.page

lock:  ## compile requirements.in, and what a deployment has beside it, to the locks for Python 3.11 and 3.12
	@$(PY) -m uv pip compile -q requirements.in --universal --python-version 3.11 -o requirements.txt
	@# The wheels for GPUs and for CPUs have the same needs; torchrec must find one of the two, not both.
	@sed 's/^fbgemm-gpu-cpu==/fbgemm-gpu==/; s/requirements.txt$$/requirements-gpu.txt/' requirements.txt > requirements-gpu.txt
	@$(PY) -m uv pip compile -q deploy/requirements.in -c requirements.txt --override deploy/overrides.txt --universal \
	  --python-version 3.11 --no-annotate --no-header -o deploy/requirements.txt

clean:  ## remove everything that runs have written (var/); the environment stays
	@if [ -e var/airflow/running ] && ! flock -n var/airflow/running true; then \
	  echo "var/ is in use: stop make run or make ui first" >&2; exit 1; fi
	@rm -rf var spark-warehouse metastore_db derby.log

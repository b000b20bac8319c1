# One line per target; `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# what saving in JupyterLab adds to a notebook; `make env` lets git leave it out (.gitattributes)
STRIP := --keep-id --extra-keys "metadata.language_info.codemirror_mode metadata.language_info.file_extension metadata.language_info.mimetype metadata.language_info.nbconvert_exporter metadata.language_info.pygments_lexer metadata.language_info.version"

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(READY)  ## create .venv and install everything, at tested versions
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	if git rev-parse --git-dir >/dev/null 2>&1; then git config filter.notebooks.clean '"$(CURDIR)/$(BIN)/nbstripout" $(STRIP) || cat'; fi
	touch $(READY)

hello: $(READY)  ## in half a minute: notebook 00 on a drawn video, and a verdict on three clips
	$(BIN)/vau run smoke 00
	$(BIN)/vau hello

demo: $(READY)  ## the whole course on a synthetic world: notebooks executed into data/runs/demo
	$(BIN)/vau run demo --workers 2

test: $(READY)  ## all tests; with VAU_REAL_DATA set, on real videos too
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

testlong: $(READY)  ## presets of UCF-Crime on official trees (needs VAU_REAL_DATA; three minutes each)
	VAU_LONG=1 $(BIN)/pytest tests/test_official_trees.py

browser: $(READY)  ## JupyterLab in a real browser (needs a Chromium; minutes); screenshots in data/runs/browser
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,browser,notebooks]'
	VAU_BROWSER=1 $(BIN)/pytest tests/test_browser.py

torture: $(READY)  ## the campaign of kills, damaged files, bad servers and streams (half an hour)
	$(BIN)/python benchmarks/torture.py

EXTRAS ?= --all-extras
lock: .audit/.ready  ## requirements.lock: every version with the hashes of its files, for all systems and Python 3.11 to 3.13 (network)
	.audit/bin/uv pip compile pyproject.toml $(EXTRAS) --constraint constraints.txt --universal --python-version 3.11 --generate-hashes --quiet --output-file requirements.lock

audit: lock  ## ask for known faults of the locked versions; fails where there is no data about them (network)
	.audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict

.audit/.ready: Makefile  # not in .venv: nothing of the course needs these
	test -x .audit/bin/python || $(PYTHON) -m venv .audit
	.audit/bin/pip install --quiet uv==0.13.9 pip-audit==2.10.1
	touch .audit/.ready

lab: $(READY)  ## JupyterLab at the project, 00 open
	$(BIN)/jupyter lab --ServerApp.root_dir=. --ContentsManager.post_save_hook=vau_lib.workspace.saving.after_save --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

lint: $(READY)  ## ruff on code and notebooks, and no outputs in committed notebooks
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

SPEED := ats compress decoding efficiency extraction head holmes int8 streaming tokens two_processes video_readers
STUDIES := cascade compressed_tiny_model difficulty equal_features explanations fights_choice fights_inner fights_memtsm generated_rows \
	gpu guard_video local_change long_videos near_judge near_pretraining ordering scenarios token_accuracy torture transfer
bench: $(READY)  ## speed as ratios within one run (not the studies, which film, train or ask for words: run those one by one)
	for name in $(SPEED); do $(BIN)/python benchmarks/$$name.py || exit 1; done

toy: $(READY)  ## pretrain the tiny vision-language models of notebook 09 anew
	OMP_NUM_THREADS=1 $(BIN)/python -m vau_lib.toy.benchmark

book: $(READY)  ## the last demo run as pages: data/runs/demo/book/index.html
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,book]'
	$(BIN)/vau book demo

figures: $(READY)  ## paper figures from the tables below data/results
	$(BIN)/vau run demo 13

pictures: $(READY)  ## the README's pictures, of the last demo run
	$(BIN)/python -c "from pathlib import Path; from vau_lib.workspace import gallery; print(*gallery.export('demo', Path('data/results/demo')), sep='\n')"

results: $(READY)  ## RESULTS.md from the tables below data/results
	$(BIN)/python -m vau_lib.evaluation.result_tables

clean:  ## remove executed notebooks, synthetic data, features and models; results and raw data stay
	rm -rf data/runs data/instructions data/synthetic data/features data/models .pytest_cache .ruff_cache

.PHONY: torture lock audit book browser testlong help env hello demo test lab lint bench toy figures pictures results clean

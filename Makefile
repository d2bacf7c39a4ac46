# make demo   sets up and trains, evaluates and shows a detector on drawn pictures
# make test   sets up and runs the tests, but for the slow ones: those of several processes, of kills, of long runs
# make slow   runs those
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ROBOFLOW := roboflow==1.7.3 requests-toolbelt filetype "pillow-avif-plugin<2"
TASK ?= detect
WEIGHTS ?=
EPOCHS ?=
PUBLISHED ?=
WITH_TORCH ?=

.PHONY: setup demo test slow parity check fix bench docs release clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
# Without what it asks for: OpenCV would change how supervision draws in every other test.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(ROBOFLOW)
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/rfdetr demo --task $(TASK) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(EPOCHS),--epochs $(EPOCHS))

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow"

slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m slow

parity: $(STAMP)
	$(BIN)/python -m pytest -n 2 tests/parity

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/compare.py $(if $(PUBLISHED),--published $(PUBLISHED))

# The references are written anew, then the site into site/.
docs: $(STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt zensical
	$(BIN)/zensical build --clean --strict

# Wheel, licences, bill of materials, and the wheel in empty environments; WITH_TORCH=3.11 predicts with it there.
release: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[release]"
	$(BIN)/python tools/release_check.py $(if $(WITH_TORCH),--with-torch $(WITH_TORCH))

clean:
	rm -rf $(VENV) dist build site

# make search      searches a cell on scikit-learn's handwritten digits: one to three minutes on 2 cores, downloads only packages
# make test        runs the tests, within 15 minutes on 2 cores; PADDLE=2.6.2: on that version, in an environment of its own
# make test-all    runs those that take very long too
# make test-fast   runs the quick tests: less than 90 seconds on 2 cores
# make lint        checks the style (pyproject.toml)
#
# Each makes the virtual environment it needs first, and only once. PYTHON=python3.12 chooses the interpreter for it.
# From another folder: make -C PATH search

PYTHON ?= python3
DEFAULT_PADDLE := $(shell sed -n 's/^paddlepaddle==//p' requirements.txt)
PADDLE ?= $(DEFAULT_PADDLE)
VENV := .venv$(if $(filter-out $(DEFAULT_PADDLE),$(PADDLE)),-$(PADDLE))
READY := $(VENV)/requirements.txt
ONNX := $(VENV)/requirements_onnx.txt

.PHONY: search test test-all test-fast lint

search: $(READY)
	$(VENV)/bin/python search.py --dataset=digits --method=PC-DARTS --layers=3 --epochs=10 --epochs_no_archopt=2 \
		--batch_size=32 --learning_rate=0.1 --arch_learning_rate=6e-3 --log_freq=10 --model_save_dir=search_digits

test: $(ONNX)
	$(VENV)/bin/python -m pytest -q -n 2 --dist=worksteal -m "not long and not repeated"

test-all: $(ONNX)
	$(VENV)/bin/python -m pytest -q -n 2 --dist=worksteal

test-fast: $(READY)
	$(VENV)/bin/python -m pytest -q -n 2 --dist=worksteal -m "not slow and not long"

lint: $(READY)
	$(VENV)/bin/ruff check

# The copy of the requirements inside the environment says that all of them are installed; it is written last.
$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	sed 's/^paddlepaddle==.*/paddlepaddle==$(PADDLE)/' requirements.txt > $(VENV)/wanted.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -r $(VENV)/wanted.txt
	mv $(VENV)/wanted.txt $@

# Where these cannot be installed, the tests that need them say so and are skipped.
$(ONNX): tests/requirements_onnx.txt $(READY)
	sed '$(if $(filter 2.%,$(PADDLE)),s/^paddle2onnx==[^;]*/paddle2onnx==1.3.1/)' $< > $(VENV)/wanted.txt
	-$(VENV)/bin/python -m pip install --disable-pip-version-check -q -r $(VENV)/wanted.txt
	mv $(VENV)/wanted.txt $@

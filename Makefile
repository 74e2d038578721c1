# Needs Python 3.11, make and a package index; everything else goes into .venv folders here.
PYTHON ?= python3.11
METHODS = sequential replay recurrent_kif
PIP = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test test-slow test-lowest docs clean

quickstart: .venv/ready
	rm -rf quickstart && mkdir quickstart
	for method in $(METHODS); do \
	  HF_HUB_OFFLINE=1 .venv/bin/engram run examples/quickstart.yaml method=$$method \
	    lineage=quickstart/$$method --results quickstart/results.json || exit 1; \
	done
	.venv/bin/python examples/plot_forgetting.py quickstart quickstart/forgetting.svg

test: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/pyright --pythonpath .venv-test/bin/python
	HF_HUB_OFFLINE=1 .venv-test/bin/python -m pytest --numprocesses 2

# What takes too long for every change.
test-slow: .venv-test/ready
	HF_HUB_OFFLINE=1 .venv-test/bin/python -m pytest --numprocesses 2 -m slow

# On the lowest versions of pyproject.toml; what old releases warn of is not ours.
test-lowest: .venv-lowest/ready
	HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest --numprocesses 2 -W default \
	  -m "not own and not slow" \
	  --ignore tests/docs

docs: .venv-test/ready
	NO_MKDOCS_2_WARNING=1 .venv-test/bin/mkdocs build --strict

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) --editable '.[plot]'
	touch $@

.venv-test/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(PIP) --editable '.[test,benchmarks]'
	touch $@

.venv-lowest/ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python $(PIP:constraints.txt=constraints-lowest.txt) \
	  --editable '.[test,benchmarks]'
	touch $@

clean:
	rm -rf .venv .venv-test .venv-lowest quickstart site

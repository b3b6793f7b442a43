# Wraps what Python does, so that one needs no more than Python 3.11 to 3.13 and make.
# Another Python: make lab PYTHON=python3.13. More words for the tool behind: make test ARGS="-k doctor".

# The first of these that the course runs on; else python3, which is then refused with a sentence.
CANDIDATES = .venv/bin/python python3 python3.13 python3.12 python3.11
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && exit; done; echo python3)
COURSE = .venv/bin/dlcourse
ARGS =

.DEFAULT_GOAL := help
.PHONY: help setup lab test test-colab run notebooks book serve lint lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

setup: # the virtual environment; at once when it is up to date
	@"$(PYTHON)" -I dlcourse_utils/bootstrap.py

lab: setup ## set everything up and open the course in JupyterLab
	@$(COURSE) lab $(ARGS)

test: setup ## set everything up and run all tests but those of Colab
	@$(COURSE) test $(ARGS)

test-colab: setup ## run all notebooks with the packages of Colab
	@$(COURSE) test tests/test_colab.py -m colab $(ARGS)

run: setup ## execute a solved lesson and show its verdicts: make run LESSON=01
	@test -n "$(LESSON)" || { echo "Name the lesson: make run LESSON=01" >&2; exit 2; }
	@$(COURSE) run $(LESSON)

notebooks: setup ## make the notebooks anew from solutions/*.py
	@$(COURSE) build $(ARGS)

book: setup ## build the site into build/site from the stored outputs; needs no network
	@$(COURSE) book

serve: book ## build the site and show it on this machine
	@$(COURSE) serve $(ARGS)

lint: setup ## style, generated files, unused code
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@$(COURSE) build --check
	@.venv/bin/vulture

lock: setup ## renew requirements.lock and environment.yml; newer versions: ARGS=--upgrade
	@.venv/bin/python -I dlcourse_utils/bootstrap.py lock $(ARGS)

clean: ## remove what can be made again; course notebooks stay
	rm -rf .venv build dist .pytest_cache .ruff_cache
	find dlcourse_utils tests solutions -name __pycache__ -prune -exec rm -rf {} +

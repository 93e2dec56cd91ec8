# The few commands that people type. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-down logs test test-long lint unit molecule bench env tools engine image lab lock

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

help: ## what can be typed
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: lab ## everything from nothing: the fleet, a first release, orders through the load balancer
	@lab/demo.sh

demo-down: ## remove the lab, leave nothing behind
	@lab/down.sh

logs: ## follow the logs of all hosts at once; LIMIT=app SINCE=10m INVENTORY=... narrow it
	@bin/follow_logs.py $(if $(LIMIT),--limit '$(LIMIT)') $(if $(SINCE),--since $(SINCE)) $(if $(INVENTORY),--inventory $(INVENTORY))

test: env tools engine image ## all set-up and every test
	@tests/run.py lint unit molecule

test-long: env tools engine image ## the fleet's tests that `make test` leaves out: every fault, bad version and operation
	@tests/run.py molecule --long

lint: env tools ## ansible-lint, yamllint, ruff, mypy, import contract, shellcheck
	@tests/run.py lint

unit: env tools engine image ## tests that need no lab: policy, templates, plugins, app
	@tests/run.py unit

molecule: env engine image ## the fleet in containers, from nothing to destroyed
	@tests/run.py molecule

bench: lab ## the figures, each beside something measured in the same run; NAME=... runs one
	@bench/run.sh $(NAME)

env: ## the control node's Python environment
	@lab/python.sh

tools: ## the programs that tests run: age, chromium, haproxy, nats-server, prometheus, redis-server, shellcheck
	@lab/tools.sh

engine: ## a Docker engine on this machine
	@lab/engine.sh

image: env engine ## the images that the lab and the app's image start from
	@lab/image.sh

lab: env engine image ## the lab's hosts, bare
	@lab/up.sh

lock: ## the control node's locks anew: from the .in files and the app's own lock
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-strip-extras --no-annotate --no-header --no-emit-index-url \
	  --python-version 3.11 --constraint app/requirements.txt requirements/control.in app/pyproject.toml \
	  --output-file requirements/control.txt
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-strip-extras --no-annotate --no-header --no-emit-index-url \
	  --python-version 3.11 --constraint app/requirements.txt --extra notify app/pyproject.toml --output-file app/requirements-notify.txt
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-strip-extras --no-annotate --no-header --no-emit-index-url \
	  --python-version 3.12 tests/newest/requirements.in --output-file tests/newest/requirements.txt

# Anything else that is typed.
.DEFAULT:
	@python3 -c 'import difflib, sys; near = difflib.get_close_matches(sys.argv[1], sys.argv[2:]); \
	  print(f"There is no make {sys.argv[1]}." + (" Did you mean make " + " or make ".join(near) + "?" if near else "") + " There is:")' \
	  $@ $$(awk -F: '/^[a-z-]+:.*## /{print $$1}' $(MAKEFILE_LIST)) >&2
	@$(MAKE) --no-print-directory help >&2
	@exit 2

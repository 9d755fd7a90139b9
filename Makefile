# chatd: `make run` shows it, `make test` proves it, `make help` lists the rest.
.PHONY: help setup setup-mlx setup-vllm-client dev run test test-journeys test-front test-front-reports test-abuse fuzz mixing test-page test-inference test-vllm check faults faults-questions faults-alerts faults-escalation faults-inference faults-canary bench bench-inference bench-fanout bench-alerts sbom audit-dependencies clean

# Where it is set, each process that the tests start compiles chatd anew: more than half of what its start costs.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv/ with the command chatd in it
	@scripts/setup base

setup-mlx: ## the same with mlx-lm, for `chatd infer --engine mlx` (Apple silicon; a Linux CPU for trying it)
	@scripts/setup mlx

setup-vllm-client: ## the same with what `chatd infer --engine vllm` needs (the vLLM server is installed apart)
	@scripts/setup vllm

# "0" is pip's --no-compile: most modules of what the tests need are never imported, and compiling all takes 40 s.
dev: ## the same with what the tests need
	@PIP_NO_COMPILE=0 scripts/setup dev

run: setup ## start everything one machine needs on http://127.0.0.1:8080
	@.venv/bin/chatd up $(ARGS)

test: dev ## format, lint, types and all tests that fit in five minutes
	@scripts/system-packages
	@nice scripts/check & checked=$$!; scripts/test $(ARGS); tested=$$?; \
	wait $$checked || { echo "make check fails, see above" >&2; exit 1; }; exit $$tested

test-journeys: dev ## stories in which gateways, workers, Redis and ledger die or freeze
	@scripts/system-packages
	@.venv/bin/pytest -m journeys $(ARGS)

test-front: dev ## gateways behind a real nginx with the files of deploy/: TLS, moves, roll-over, Redis with passwords
	@scripts/system-packages
	@.venv/bin/pytest -m front --ignore=tests/front/test_front_reports.py $(ARGS)

test-front-reports: dev ## what gixy, sslyze, testssl.sh and Autobahn say of that nginx, in .venv-front
	@scripts/system-packages
	@scripts/setup-front-tools
	@.venv/bin/pytest -m front tests/front/test_front_reports.py $(ARGS)

test-abuse: dev ## bad inputs, changed frames, floods and mixed messages against real gateways
	@scripts/system-packages
	@.venv/bin/pytest -m abuse $(ARGS)

fuzz: dev ## a million changed frames of five seeds, each judged here and sent to a gateway; about ten minutes
	@scripts/system-packages
	@.venv/bin/python -m tests.abuse.fuzz --frames 1000000 $(ARGS)

mixing: dev ## mixed messages of 40 users, each with a word of their own: nobody gets another's
	@scripts/system-packages
	@.venv/bin/python -m tests.abuse.mixing --messages 20000 $(ARGS)

test-page: dev ## the page in every width, theme and language, with pictures in out/screens/
	@scripts/system-packages
	@.venv/bin/pytest -m "heavy and not journeys and not front" $(ARGS)

test-inference: dev ## stories over WebSockets and the long suites, with mlx-lm on a small random model
	@scripts/system-packages
	@.venv/bin/python -m tests.blas pytest -m inference $(ARGS)

test-vllm: dev ## the same suites against a real vLLM server on the CPU, in .venv-vllm (4 GB, Linux x86-64)
	@scripts/setup-vllm
	@.venv/bin/pytest -m vllm tests/vllm $(ARGS)

check: dev ## format, lint and types only
	@scripts/check

faults: faults-questions faults-alerts faults-escalation ## break what questions and alerts rest on: the three below, over an hour

faults-questions: dev ## kill the gateway at each step of a question, 200 seeded runs
	@.venv/bin/python -m tests.faults.campaign --runs 200 $(ARGS)

faults-alerts: dev ## break gateways, Redis, ledger and network below 50 phones, 500 seeded faults
	@scripts/system-packages
	@.venv/bin/python -m tests.faults.alerts $(ARGS)

faults-escalation: dev ## kill gateways and set clocks while alerts escalate, 5 seeded runs
	@scripts/system-packages
	@.venv/bin/python -m tests.faults.escalation --runs 5 $(ARGS)

faults-inference: dev ## kill, freeze and revive the worker while it writes, 50 seeded runs
	@scripts/system-packages
	@.venv/bin/python -m tests.faults.workers --runs 50 $(ARGS)

faults-canary: dev ## look for what people wrote on disks and in memory, 20 seeded runs of kills (Linux, root)
	@scripts/system-packages
	@.venv/bin/python -m tests.faults.canary $(ARGS)

bench: dev ## measure accepted, facts, memory and CPU with 200 connections
	@.venv/bin/python loadtest/bench/questions.py $(ARGS)

bench-inference: dev ## measure engine and whole path against mlx-lm itself, as ratios
	@scripts/system-packages
	@.venv/bin/python loadtest/bench/inference.py $(ARGS)

bench-fanout: dev ## measure one alert to all phones beside nginx with nchan, mosquitto, Node and a plain loop
	@scripts/bench-peers
	@.venv/bin/python loadtest/bench/fanout.py $(ARGS)

bench-alerts: dev ## measure alerts to 200 phones while 20 answers are written
	@scripts/system-packages
	@.venv/bin/python loadtest/bench/alerts.py $(ARGS)

sbom: dev ## write out/sbom.json, CycloneDX: what is locked, carried along and needed of the system
	@scripts/sbom --out out/sbom.json $(ARGS)

audit-dependencies: dev ## compare the locked versions with a vulnerability database; ARGS="--database FOLDER" where the internet is not
	@scripts/audit-dependencies $(ARGS)

clean: ## remove what the targets made (not the data directory)
	@rm -rf .venv .venv-vllm .venv-front out .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

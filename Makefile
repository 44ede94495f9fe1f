# Daily commands. `make demo` and `make test` work on a machine with Rust, Python 3, a C compiler and make.

CARGO ?= cargo
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help setup build demo test fmt lint bench clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## fetch what is not in the repository: ONNX Runtime, ONNX's operator tests
	@PYTHON=$(PYTHON) scripts/setup
	@$(PYTHON) scripts/node_tests.py

build: ## build the program, optimised
	$(CARGO) build --release --locked

demo: setup build ## train tiny-sd for a few minutes, compare it with what it was, and show it: runs/demo-report.html
	target/release/ortdpo train --config examples/demo.yaml --output runs/demo
	target/release/ortdpo eval --config examples/eval-demo.yaml --output runs/demo-eval
	target/release/ortdpo report runs/demo runs/demo-eval --output runs/demo-report.html

test: setup ## formatting, lints and all tests
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked

fmt: ## format the source
	$(CARGO) fmt

lint: ## lints only
	$(CARGO) clippy --locked --all-targets -- -D warnings

bench: setup ## benchmarks; they take a while
	$(CARGO) bench --locked

clean: ## remove what was built and fetched
	rm -rf target .ort .data

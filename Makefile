# Daily commands. `make demo` and `make test` work on a machine with Rust, Python 3, a C compiler and make.

CARGO ?= cargo
PYTHON ?= python3

PAIRS ?= runs/pairs
PICTURES = --model models/tiny-sd --prompts runs/pictures/prompts.txt --batch 16

.DEFAULT_GOAL := help
.PHONY: help setup build demo pairs test placement fmt lint bench clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## fetch what is not in the repository: ONNX Runtime, ONNX's operator tests
	@PYTHON=$(PYTHON) scripts/setup
	@$(PYTHON) scripts/node_tests.py

build: ## build the program, optimised
	$(CARGO) build --release --locked

demo: setup build ## train tiny-sd for a few minutes, compare it with what it was, and show it: runs/demo-report.html
	target/release/ortdpo train --config examples/demo.yaml --output runs/demo
	target/release/ortdpo eval --config examples/eval-demo.yaml --output runs/demo-eval
	target/release/ortdpo report runs/demo runs/demo-eval --output runs/demo-report.html

# Pictures of one prompt differ in steps and guidance, and so in quality; the reward ranks them, judge only watches.
# PAIRS=models/tiny-sd/pairs would replace the pairs that the repository brings.
pairs: setup build ## make preference pairs for tiny-sd, with images of its own at three settings
	mkdir -p runs/pictures
	head -n 460 models/tiny-sd/prompts/train.txt > runs/pictures/prompts.txt
	target/release/ortdpo generate $(PICTURES) --steps 20 --guidance 3 --seed 101 --output runs/pictures/usual
	target/release/ortdpo generate $(PICTURES) --steps 6 --guidance 1.5 --seed 102 --output runs/pictures/hasty
	target/release/ortdpo generate $(PICTURES) --steps 30 --guidance 5 --seed 103 --output runs/pictures/careful
	target/release/ortdpo pairs --images runs/pictures/usual --images runs/pictures/hasty --images runs/pictures/careful \
		--reward clip --watch judge --choose all --label bradley-terry --temperature 0.5 --held-out 0.15 \
		--output $(PAIRS) --replace

test: setup ## formatting, lints and all tests
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked

# ONNX Runtime decides which operator runs where when a session is made; libraries that answer for NVIDIA's are enough for that.
placement: ## whether training steps would be wholly on CUDA; fetches ONNX Runtime for CUDA, needs 16 GB of memory but no GPU
	PYTHON=$(PYTHON) scripts/setup --cuda --dir .ort/cuda
	$(PYTHON) scripts/pretend_gpu.py target/pretended --ort .ort/cuda
	. target/pretended/env && $(CARGO) test --locked --test cuda_placement -- --ignored --test-threads 1

fmt: ## format the source
	$(CARGO) fmt

lint: ## lints only
	$(CARGO) clippy --locked --all-targets -- -D warnings

bench: setup ## benchmarks; they take a while
	$(CARGO) bench --locked

clean: ## remove what was built and fetched
	rm -rf target .ort .data

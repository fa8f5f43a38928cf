# Evenkeel. `make` lists what there is.

# Where rustup puts cargo, for shells that have not been told yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help demo test

help:
	@echo 'make demo   build everything, run the shop, break it, and leave it running'
	@echo 'make test   every check and every test'

demo:
	@scripts/setup.sh
	@scripts/demo.sh

test:
	@scripts/setup.sh
	@# In continuous integration a lock file behind the manifests must not be brought up to date in silence.
	@if [ -n "$$CI" ]; then cargo fetch --locked --quiet; fi
	@cargo xtask ci

# Paths stay relative to this folder, so a checkout in a path with a space works.
.PHONY: help demo test validate setup baseline companion system clean

help:
	@echo 'make demo       install what is missing, then compare the attention paths on the embedded model'
	@echo 'make test       install what is missing, then run every check and test'
	@echo 'make validate   run the device tests under GPU-assisted validation: slow, finds out-of-bounds accesses'
	@echo 'make setup      only install what is missing'
	@echo 'make baseline  write again what make test compares with: launches, bytes, shader statistics'
	@echo 'make companion  only compile the Vulkan layer again (vkbackend/companion)'
	@echo 'make system     only the system packages and the Vulkan driver: for root, where users have no sudo'
	@echo 'make clean      remove the Python environments and the compiled layer; system packages stay'

demo: setup
	@.venv/bin/latentvk compare

test:
	@tools/setup.sh --tests
	@tools/test.sh

validate:
	@tools/setup.sh --tests
	@tools/validate.sh

setup:
	@tools/setup.sh

baseline:
	@.venv/bin/latentvk shaders stats --chip phoenix --save results/shaders/phoenix.json
	@.venv/bin/python tools/gate.py --renew

companion:
	@.venv/bin/python hatch_build.py

system:
	@tools/setup.sh --system

clean:
	@rm -rf .venv .tools vkbackend/companion/liblatentvk_companion.so

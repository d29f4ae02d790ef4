# Paths stay relative to this folder, so a checkout in a path with a space works.
.PHONY: help demo test setup system clean

help:
	@echo 'make demo    install what is missing, then compare the attention paths on the embedded model'
	@echo 'make test    install what is missing, then run every check and test'
	@echo 'make setup   only install what is missing'
	@echo 'make system  only the system packages and the Vulkan driver: for root, where users have no sudo'
	@echo 'make clean   remove the Python environments; system packages stay'

demo: setup
	@.venv/bin/latentvk compare

test: setup
	@tools/test.sh

setup:
	@tools/setup.sh

system:
	@tools/setup.sh --system

clean:
	@rm -rf .venv .tools

.PHONY: check test slow quickstart format

check:          ## lint
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

test:           ## fast tests in a fresh environment
	bash scripts/test.sh

slow:           ## tests that take long
	.venv/bin/python -m pytest -m slow

quickstart:     ## the whole system on a laptop
	bash scripts/quickstart.sh

format:
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .

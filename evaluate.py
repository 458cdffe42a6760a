"""Evaluate a run's tasks again: `python evaluate.py run=RUN_DIR`."""

from msh.cli.evaluate import main

if __name__ == "__main__":
    main()

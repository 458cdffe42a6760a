"""Train a curriculum: `python train.py +experiment=sequential`."""

from msh.cli.app import run_train

if __name__ == "__main__":
    run_train()

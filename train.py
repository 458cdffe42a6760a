"""Train a curriculum: `python train.py +experiment=sequential`."""

from msh.cli.train import main

if __name__ == "__main__":
    main()

"""One thread, so that sums are taken in one order; examples that are the same in every run; no reports to W&B."""

import os

import torch
from hypothesis import settings

torch.set_flush_denormal(True)  # as runs do: so that no test depends on those before it
torch.set_num_threads(1)
os.environ["WANDB_ERROR_REPORTING"] = "false"  # else its telemetry looks for its server

settings.register_profile("msh", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("msh")

"""Test every property in both forms: small weights as dense tensors, then as sparse ones."""

import pytest
import torch

from msh.subnetworks import sparse


@pytest.fixture(scope="module", params=["dense", "sparse"], autouse=True)
def form(request):
    """Set the form of weights where the library may choose it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "sparse":
            patch.setattr(sparse, "SMALLEST", 1)
            patch.setattr(sparse, "DENSEST", 1.0)
        yield request.param


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Keep subnormal numbers, which hypothesis draws too."""
    torch.set_flush_denormal(False)

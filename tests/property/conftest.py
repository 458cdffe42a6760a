"""Every property holds in either form: small weights are computed with as dense tensors, then as sparse ones."""

import pytest
import torch

from msh.subnetworks import sparse


@pytest.fixture(scope="module", params=["dense", "sparse"], autouse=True)
def form(request):
    """The form in which weights are computed with where the library may choose."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "sparse":
            patch.setattr(sparse, "SMALLEST", 1)
            patch.setattr(sparse, "DENSEST", 1.0)
        yield request.param


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Compute with them as they are: hypothesis draws them, too."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(True)

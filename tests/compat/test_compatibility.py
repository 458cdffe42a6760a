"""Architectures work as docs/compatibility.md says; the slow ones are checked by `make compat`."""

import pytest

from compat.architectures import ARCHITECTURES
from compat.checking import check
from compat.write import DOCUMENT, read_table

EVERY = [architecture for several in ARCHITECTURES.values() for architecture in several]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export, of recurrent layers
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(one, marks=[] if one.quick else [pytest.mark.slow]) for one in EVERY],
    ids=str,
)
def test_an_architecture_works_as_documented(architecture):
    assert check(architecture) == read_table(DOCUMENT)[architecture.name]


def test_the_document_lists_every_architecture():
    assert list(read_table(DOCUMENT)) == [one.name for one in EVERY]

"""`msh inspect KEY=VALUE ...`: show the backbone that settings choose, without a run."""

from __future__ import annotations

from collections.abc import Sequence

from msh.cli.arguments import split_arguments
from msh.cli.configs import compose_config


def inspect_settings(arguments: Sequence[str], own: str | None = None, parameters: bool = False) -> None:
    """Print the modules of a config's backbone, or its tensors.

    Args:
        arguments: overrides, as typed.
        own: folder of the user's configs.
        parameters: print the tensors.
    Raises:
        ValueError: a setting is invalid, or the shape of the backbone's inputs is unknown.
    """
    from msh.report.inspection import modules_table, print_table, tensors_table
    from msh.subnetworks.modules import describe_modules
    from msh.subnetworks.roles import find_roles
    from msh.training.build import build_backbone, find_input_shape
    from msh.training.targets import check_arguments

    config = compose_config(split_arguments(arguments)[1], own)
    check_arguments(config)
    shape, origin = find_input_shape(config)
    backbone = build_backbone(config.with_input_shape(shape), {})
    print(f"inputs: {list(shape)}, {origin}")
    if parameters:
        print_table(tensors_table((role.name, role.shape, role.kind, role.why) for role in find_roles(backbone)))
        return
    facts = describe_modules(backbone)
    print_table(modules_table(facts), facts.note)

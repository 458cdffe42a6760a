"""What the README shows runs as it stands."""

import re

from running import ROOT


def test_library_example_runs_and_forgets_nothing(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S).group(1)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out == f"torch.Size([256, 1]) {4608 - 2 * (102 + 819)}\n"
    network, inputs, targets = (names[name] for name in ("network", "inputs", "targets"))
    assert list(network.parameters()) == []
    for task, target in targets.items():
        assert (network(inputs, task) - target).square().mean() < 0.5 * target.var(), task


def test_groups_of_the_readme_are_those_of_the_configs():
    rows = re.findall(r"^\| `([a-z./]+)` \| (.*?) \|", (ROOT / "README.md").read_text(), flags=re.M)
    assert len(rows) > 8
    for group, options in rows:
        files = {path.stem for path in (ROOT / "conf" / group.replace(".", "/")).glob("*.yaml")}
        named = set(re.findall(r"`([a-z0-9_]+)`", options))
        assert named == files, group

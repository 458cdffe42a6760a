"""Write texts with a language model, after the prompts that a command line has."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from msh.cli.own import add_allow, allowed


def arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="run folder, network or subnetwork file, or hf://user/name")
    parser.add_argument(
        "prompts",
        nargs="+",
        metavar="PROMPT",
        help='beginning of a text; "": a new text; -: a prompt per line, from standard input',
    )
    parser.add_argument("--task", help="the task, of kind lm; needed if the network has several tasks")
    parser.add_argument("--max-new-tokens", type=int, default=50, metavar="N", help="most tokens after each prompt")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="0: always the most probable token; default: 1"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K most probable tokens; default: all")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws; default: 0")
    parser.add_argument("--base", help="network file with the tasks that a subnetwork file's task reads")
    add_allow(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; default: cpu")


def generate(given: Namespace) -> None:
    """Print a text per prompt.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an argument is invalid, or the task is no language model.
    """
    from msh.inference.inputs import STDIN, text_of
    from msh.inference.predictor import load

    prompts = given.prompts
    if prompts == [STDIN]:
        typed = text_of(STDIN, "utf-8").removesuffix("\n")
        prompts = typed.split("\n") if typed else []
    predictor = load(given.source, base=given.base, classes=allowed(given.allow), device=given.device)
    texts = predictor.generate(
        given.task,
        prompts,
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
        top_k=given.top_k,
        seed=given.seed,
    )
    print("\n".join(texts))

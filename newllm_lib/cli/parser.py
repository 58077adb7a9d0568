"""Every command with its flags. Those of training come from the `Recipe` dataclass."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from dataclasses import fields
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from newllm_lib import __version__
from newllm_lib.cli import about, bench, data, expand, results, training
from newllm_lib.cli.help import HelpAction
from newllm_lib.console import go_on_without_reader
from newllm_lib.errors import UsageError
from newllm_lib.recipe import GUIDES_KEYS, Recipe, shipped_recipes
from newllm_lib.recipe.aliases import older_names
from newllm_lib.removed import RECIPE_KEYS

Handler = Callable[[argparse.Namespace], Any]
_Commands = argparse._SubParsersAction


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """argparse would print its usage and exit.

        Raises:
            UsageError: always.
        """
        if message.endswith("required: RECIPE"):
            message = f"name a RECIPE: a YAML file, or one of {', '.join(shipped_recipes())}"
        raise UsageError(f"{message[:1].upper()}{message[1:]} (`{self.prog} --help` shows how)")


def parse(argv: list[str]) -> argparse.Namespace | None:
    """The command to run (`handler`) with its arguments; None after `--help` or `--version`.

    Raises:
        UsageError: an unknown command or flag (names the nearest), or something missing.
    """
    parser, commands = build()
    if not argv:
        parser.print_help()
        return None
    if not argv[0].startswith("-") and argv[0] not in commands:
        raise UsageError(
            f"No command {argv[0]!r}: {_nearest(argv[0], list(commands))} (`newllm --help` lists them)"
        )
    if argv[0] == "bench":
        return _benchmark(argv)
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except SystemExit:  # only after help and version: `_Parser.error` does not exit
        return None
    if unknown:
        _refuse(unknown, commands[arguments.command])
    if arguments.json and getattr(arguments, "background", False):
        raise UsageError(
            "--json and --background do not go together: the result comes when the run has ended."
        )
    arguments.argv = argv
    return arguments


def _benchmark(argv: list[str]) -> argparse.Namespace | None:
    """As `parse`, for `newllm bench`: each benchmark brings its own flags."""
    found = bench.open_benchmark(argv[1:])
    if found is None:
        return None
    parser = benchmark_parser(*found)
    try:
        arguments, unknown = parser.parse_known_args(bench.underscored(argv[2:]))
    except SystemExit:  # only after help
        return None
    if unknown:
        _refuse(unknown, parser)
    bench.check_outputs(arguments)
    go_on_without_reader()
    return arguments


def benchmark_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one benchmark, whose module brings its flags."""
    parser = _Parser(
        prog=f"newllm bench {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common_flags(parser, module.main)
    parser.set_defaults(command="bench")
    module.add_arguments(parser)
    return parser


def build() -> tuple[_Parser, dict[str, argparse.ArgumentParser]]:
    """The parser, and the parser of each command by name."""
    parser = _Parser(
        prog="newllm", description="Train small language models, watch them, measure them, talk to them."
    )
    parser.add_argument("--version", action="version", version=f"newllm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _training_commands(commands)
    _measuring_commands(commands)
    _using_commands(commands)
    _data_commands(commands)
    _expand_command(commands)
    commands.add_parser(
        "bench", help="measure speed, decoding, quality and more beside the peers (from a clone)"
    )
    _about_commands(commands)
    return parser, dict(commands.choices)


class _Argument(NamedTuple):
    """What `_add` gives to a parser: a word, or a flag as `--num_layers` and `--num-layers`."""

    names: tuple[str, ...]
    options: dict[str, Any]


def _word(name: str, **options: Any) -> _Argument:
    return _Argument((name,), options)


def _flag(*names: str, **options: Any) -> _Argument:
    spellings = dict.fromkeys(s for name in names for s in (f"--{name}", f"--{name.replace('_', '-')}"))
    return _Argument(tuple(spellings), {**options, "help": options["help"].replace("%", "%%")})


def _add(parser: argparse.ArgumentParser, *arguments: _Argument) -> None:
    for argument in arguments:
        parser.add_argument(*argument.names, **argument.options)


_RUN = (
    _word(
        "run",
        metavar="RUN",
        help="a run's name (`newllm runs`) or folder, any other folder with a model or adapters, or a hub id "
        "(OWNER/NAME)",
    ),
    _flag("checkpoint", default="best", help="best (default), last or checkpoint-N"),
)


def _command(
    commands: _Commands, name: str, handler: Handler, help: str, *arguments: _Argument, **options: Any
) -> _Parser:
    parser = commands.add_parser(name, help=help, description=help[:1].upper() + help[1:] + ".", **options)
    _common_flags(parser, handler)
    _add(parser, *arguments)
    return parser


def _common_flags(parser: argparse.ArgumentParser, handler: Handler) -> None:
    _add(
        parser,
        _flag("json", action="store_true", help="the result alone on standard output, as one JSON object"),
        _flag("debug", action="store_true", help="show the traceback of an error"),
    )
    parser.set_defaults(handler=handler)


def _training_commands(commands: _Commands) -> None:
    about = "train a recipe; the same command continues a stopped run"
    train = _command(commands, "train", training.train, about, add_help=False)
    _add(train, _word("name", metavar="RECIPE", help="a recipe's name (`newllm recipes`) or a YAML file"))
    about = "train New-LLM and TinyGPT2 on real dialogues and compare them"
    demo = _command(commands, "demo", training.demo, about, add_help=False)
    two_from_scratch = ("recipe", "model", "run_name", "from_run")
    for parser, left_out, recipe in ((train, ("recipe",), "?"), (demo, two_from_scratch, 0)):
        _add(
            parser,
            # Of the two the last one counts: colab_bootstrap.sh puts the first in front of its user's flags.
            _flag(
                "background",
                action="store_true",
                default=False,
                help="go on after this command; a log to follow",
            ),
            _flag(
                "foreground", dest="background", action="store_false", help="wait for the end (the default)"
            ),
        )
        _recipe_flags(parser, left_out)
        shows: dict[str, Any] = {"action": HelpAction, "left_out": left_out, "nargs": recipe}
        parser.add_argument("-h", "--help", **shows, complete=False)
        parser.add_argument("--help-all", "--help_all", **shows, complete=True)


def _measuring_commands(commands: _Commands) -> None:
    _command(
        commands,
        "evaluate",
        results.evaluate,
        "measure a run on its test split, beside simple baselines",
        *_RUN,
        _flag("split", default="test", choices=("train", "validation", "test"), help="default: test"),
        _flag("data_dir", help="take the data from this folder instead of where the run's came from"),
        _flag("data", help="other data by name, several with commas between them: dailydialog,dolly"),
        _flag(
            "loss_on",
            choices=("answers", "everything"),
            help="what counts of a dialogue (default: as it is learned)",
        ),
        _flag("batch_size", type=_positive, help="rows at a time (changes speed and memory, not the result)"),
        _flag(
            "block_length", type=_positive, help="tokens at a time (changes speed and memory, not the result)"
        ),
        _flag("no_baselines", action="store_true", help="leave out the unigram and bigram baselines"),
    )
    _command(
        commands,
        "compare",
        results.compare,
        "set two runs side by side: quality, speed, memory",
        *(_word(w.lower(), metavar=w, help=_RUN[0].options["help"]) for w in ("RUN_A", "RUN_B")),
        _flag("data_dir", help="take the text from this folder instead of the first run's data"),
        _flag("data", help="other data by name, such as wikitext"),
        _flag(
            "output_dir",
            help="where the table (Markdown) and the picture go (default: the first run's folder)",
        ),
    )


def _using_commands(commands: _Commands) -> None:
    _command(
        commands,
        "export",
        results.export,
        "a run as a folder for others: weights, tokenizer, model card",
        *_RUN,
        _flag("output_dir", help="where the folder goes (default: export/ in the run's)"),
        _flag("push", metavar="OWNER/NAME", help="also upload it to the Hugging Face hub (needs HF_TOKEN)"),
        _flag(
            "public", action="store_true", help="the uploaded repository is for everyone (default: private)"
        ),
        _flag(
            "gguf",
            action="store_true",
            help="also write a GGUF file and a Modelfile, for llama.cpp and Ollama",
        ),
    )
    _command(
        commands,
        "chat",
        results.chat,
        "talk with a run (/reset, /settings, /quit)",
        *_RUN,
        _flag("system", metavar="TEXT", help="instructions that the model reads before the first turn"),
        *(
            _flag(name, metavar="NUMBER", help="as in the chat, where /settings explains it")
            for name in results.SETTINGS
        ),
    )
    _command(
        commands,
        "serve",
        results.serve,
        "answer other programs over HTTP, as OpenAI's clients expect",
        *_RUN,
        _flag("host", default="127.0.0.1", help="the address to listen on (default: this machine alone)"),
        _flag("port", type=_port, default=8000, help="its port (default: 8000; 0: any that is free)"),
    )


def _expand_command(commands: _Commands) -> None:
    _command(
        commands,
        "expand",
        expand.expand,
        "give a trained New-LLM a larger context, same predictions",
        _word("run", metavar="RUN", help="a run's name (`newllm runs`) or folder"),
        _flag("context_dim", type=_positive, required=True, help="channels of the new context vector"),
        _flag("output_dir", help="folder of the expanded run (default: RUN_contextN beside RUN)"),
    )


def _data_commands(commands: _Commands) -> None:
    about = "see data as training will read them, or make some"
    sets = commands.add_parser("data", help=about, description=f"{about[:1].upper()}{about[1:]}.")
    actions = sets.add_subparsers(
        dest="action", metavar="show | check | get | mix | preferences", required=True
    )
    about = "show records as training will read them, and what of them the loss counts"
    shown = _command(actions, "show", data.show, about)
    about = "read all of it once and say what it is taken for; fails if it cannot train"
    checked = _command(actions, "check", data.check, about)
    source = "a recipe, files of your own, or a data set's hub id"
    for parser in (shown, checked):
        _add(parser, _word("source", metavar="RECIPE|FOLDER|FILE", help=source))
        _recipe_flags(parser, ("recipe",), hidden=True)
        parser.epilog = "Flags of `newllm train` say how it is read: --documents, --encoding, --loss_on …"
    _add(
        shown,
        _flag("count", type=_positive, default=3, help="how many records (default: 3)"),
        _flag("picture", metavar="FILE", help="also a histogram of the records' lengths, as an image"),
    )
    _command(
        actions,
        "preferences",
        data.preferences,
        "write Japanese preference pairs, for `newllm train dpo`",
        _flag("count", type=_positive, help="how many (default: as many as there are different questions)"),
        _flag("seed", type=int, default=0, help="another seed, other pairs (default: 0)"),
        _flag(
            "output", default="preferences_ja.jsonl", help="the JSONL file (default: preferences_ja.jsonl)"
        ),
    )
    _command(
        actions,
        "get",
        data.get,
        "download and prepare a source, so that training begins at once",
        _word(
            "source",
            metavar="SOURCE",
            help="a source by name (demo, wikitext, dolly …), a hub id or a folder",
        ),
        _flag("max_samples", type=_positive, help="only this many documents"),
        _flag(
            "output", help="also write them to this folder as train.jsonl, validation.jsonl and test.jsonl"
        ),
    )
    _command(
        actions,
        "mix",
        data.mix,
        "several sources as one folder of training data (asks, without --weights)",
        _flag(
            "weights",
            metavar="NAME=X,NAME=Y",
            help="each source's share of the documents, such as demo=2,dolly=1",
        ),
        _flag("documents", type=_positive, default=20_000, help="documents to train on (default: 20,000)"),
        _flag(
            "output",
            default="data/mix",
            help="the folder (default: data/mix), for `newllm train … --data_dir`",
        ),
    )


def _about_commands(commands: _Commands) -> None:
    doctor = _command(
        commands,
        "doctor",
        about.doctor,
        "show what this machine is, what will be used on it, and why",
        _flag("recipe", dest="name", metavar="RECIPE", help="also its parameters, memory and time"),
        _flag(
            "kernels",
            dest="kernels",
            nargs="*",
            metavar="NAME",
            help="run each kernel once against its reference (or only the named ones); fails where there is "
            "no GPU",
        ),
        epilog="Flags of `newllm train` change the recipe (`newllm train --help-all` lists them).",
    )
    _recipe_flags(doctor, ("recipe", "kernels"), hidden=True)
    recipes = _command(
        commands, "recipes", about.list_recipes, "list the recipes, or show one with all its keys"
    )
    shown = recipes.add_subparsers(dest="action", metavar="list | show RECIPE")
    _command(shown, "list", about.list_recipes, "list the recipes")
    _command(
        shown,
        "show",
        about.show_recipe,
        "show a recipe as YAML, each key with its meaning",
        _word("name", metavar="RECIPE", help="a recipe's name or a YAML file"),
    )
    runs = _command(commands, "runs", about.list_runs, "list the runs; show, follow, stop or restore one")
    actions = runs.add_subparsers(
        dest="action", metavar="list | status RUN | logs RUN | stop RUN | restore RUN"
    )
    _runs_actions(actions)


def _runs_actions(actions: _Commands) -> None:
    run = _word("run", metavar="RUN", help="a run's name or folder")
    _command(actions, "list", about.list_runs, "list the runs")
    _command(actions, "status", about.run_status, "show what a run is doing", run)
    _command(
        actions,
        "logs",
        about.run_logs,
        "show the end of a run's log, or follow it",
        run,
        _flag("lines", type=_positive, default=40, help="how many lines (default: 40)"),
        _flag(
            "follow",
            action="store_true",
            help="go on showing what is added, until the run ends or Ctrl-C",
        ),
    )
    _command(
        actions,
        "stop",
        about.stop_run,
        "ask a run to save and stop, and wait until it did",
        run,
        _flag("timeout", type=float, default=180.0, help="seconds to wait for the save (default: 180)"),
    )
    _command(
        actions,
        "restore",
        about.restore_run,
        "bring a run back from where it was copied (--mirror_dir)",
        _word("run", metavar="RUN", nargs="?", help="its name there, or a downloaded zip (none: list them)"),
        _flag(
            "from",
            dest="source",
            metavar="FOLDER",
            help="where the copy is: a folder, or hf://OWNER/NAME (in Colab: Drive's, once mounted)",
        ),
        _flag(
            "into",
            metavar="FOLDER",
            default="checkpoints",
            help="where runs lie here (default: checkpoints)",
        ),
    )


def _recipe_flags(parser: argparse.ArgumentParser, left_out: tuple[str, ...], hidden: bool = False) -> None:
    """A flag for every key of a recipe, under each of its names; `hidden`: without a line in the help."""
    for f in fields(Recipe):
        if f.name not in left_out:
            names = [n for n in (f.metadata["flag"], f.name) if n]
            text = argparse.SUPPRESS if hidden else f.metadata["help"]
            _add(parser, _flag(*names, dest=f"set_{f.name}", metavar="VALUE", help=text))
    for name in (*GUIDES_KEYS, *older_names()):
        _add(parser, _flag(name, dest=f"set_{name}", metavar="VALUE", help=argparse.SUPPRESS))


def _positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def _port(text: str) -> int:
    """A port's number."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port's number, from 0 to 65535, not {text!r}")
    return int(text)


def _refuse(unknown: list[str], parser: argparse.ArgumentParser) -> None:
    flag = next((word for word in unknown if word.startswith("-")), None)
    if flag is None:
        raise UsageError(f"{parser.prog} has no use for {unknown[0]!r} (`{parser.prog} --help` shows how)")
    key = flag.split("=")[0].strip("-").replace("-", "_")
    if key in RECIPE_KEYS:
        raise UsageError(f"--{key} ({RECIPE_KEYS[key].what}) is gone since 0.2.0: leave it out.")
    known = [s for action in parser._actions for s in action.option_strings if "-" not in s[2:]]
    near = _nearest(flag.split("=")[0].replace("-", "_").replace("__", "--", 1), known)
    all_of_them = "--help-all" if "--help-all" in parser._option_string_actions else "--help"
    raise UsageError(f"Unknown flag {flag.split('=')[0]}: {near} (`{parser.prog} {all_of_them}` lists all)")


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return (
        f"did you mean {near[0]}?"
        if near
        else f"there are {', '.join(known[:8])}{', …' if len(known) > 8 else ''}"
    )

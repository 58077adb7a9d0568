"""The flags of `newllm bench`."""

from __future__ import annotations

from newllm_lib.cli import bench


def add(commands, command, flag, positive) -> None:
    """Add `bench` and its actions. `command`, `flag` and `positive` are the parser's own ways to make them."""
    parent = commands.add_parser("bench", help="measure training speed, decoding or quality beside the peers")
    parent.set_defaults(json=False, debug=False)
    actions = parent.add_subparsers(dest="action", metavar="speed | decode | quality | phase7 | phase8 | table", required=True)
    speed = command(actions, "speed", bench.speed, "time training steps of New-LLM and its peers")
    decode = command(actions, "decode", bench.decode, "time single tokens after short and long histories")
    quality = command(actions, "quality", bench.quality, "train everyone on the same tokens and report a test text")
    large = command(actions, "phase7", bench.phase7, "whole training steps of 1.5 billion parameters: memory, tokens/s, MFU")
    linear = command(actions, "phase8", bench.phase8, "Phase 8 beside Phase 7: quality, speed and memory over the text's length")
    table = command(actions, "table", bench.table, "write the README's tables from the CSV")
    named = {"speed": speed, "decode": decode, "quality": quality, "phase7": large, "phase8": linear, "table": table}
    for name, parser in named.items():
        flag(parser, "out", default="benchmarks/results.csv", help="the CSV of all figures (default: benchmarks/results.csv)")
        if name not in ("table", "phase7"):
            flag(parser, "picture", help=f"where the picture goes (default: docs/{name}.png)")
    for parser in (speed, decode):
        flag(parser, "ways", nargs="+", metavar="WAY", help="only these (default: all)")
    flag(large, "ways", nargs="+", metavar="WAY", help="only these (default: lowest, speed, bnb, torchao, default)")
    flag(large, "steps", type=positive, default=6, help="steps, of which the last four are timed (default: 6)")
    flag(large, "limit", type=float, metavar="GIB", help="refuse our low-memory ways more GPU memory than this")
    flag(large, "side_by_side", action="store_true", help="start all ways at once; only their timed steps take turns")
    flag(large, "largest", action="store_true", help="also find the largest model that fits this GPU (minutes)")
    flag(linear, "parts", nargs="+", metavar="PART", help="speed, quality (default: both)")
    flag(linear, "ways", nargs="+", metavar="WAY", help='only these of "Phase 8", "Phase 7, full attention", "Phase 7"')
    flag(linear, "lengths", nargs="+", type=positive, metavar="N", help="tokens in a text (default: 512 to 65,536)")
    flag(linear, "steps", type=positive, default=3, help="timed steps (default: 3)")
    flag(linear, "minutes", type=float, help="speed: begin no further measurement after this time")
    flag(linear, "work", default="checkpoints/phase8_quality", help="where the trained runs are kept")
    flag(linear, "set", nargs="+", metavar="KEY=VALUE", help="recipe keys for all of them alike, such as epochs=2")
    flag(speed, "steps", type=positive, default=60, help="timed steps (default: 60)")
    flag(speed, "jobs", type=positive, default=1, help="processes that prepare side by side, to be timed in turn (default: 1)")
    for name, default in (("batch", "512, without a GPU 1"), ("length", "128"), ("vocabulary", "8,192, without a GPU 4,096")):
        flag(speed, name, type=positive, help=f"of the training step (default: {default})")
    flag(decode, "histories", nargs="+", type=positive, metavar="N", help="tokens read before (default: 16 65536)")
    flag(decode, "batches", nargs="+", type=positive, metavar="N", help="texts at a time (default: 1 64)")
    flag(decode, "tokens", type=positive, default=512, help="tokens timed (default: 512)")
    flag(table, "readme", default="README.md", help="the file whose tables are written (default: README.md)")
    _quality(quality, flag, positive)


def _quality(parser, flag, positive) -> None:
    for name, what in (("models", "new_llm attention …"), ("sizes", "4M 10M 25M"), ("corpora", "chitchat wikitext2")):
        flag(parser, name, nargs="+", metavar="NAME", help=f"some of {what}")
    flag(parser, "minutes", type=float, help="begin no training after this time; the same command goes on later")
    flag(parser, "jobs", type=positive, default=1, help="processes side by side on one GPU (default: 1)")
    flag(parser, "journal", default="benchmarks/quality.jsonl", help="what was trained (default: benchmarks/quality.jsonl)")
    flag(parser, "data", default="benchmarks/.data", help="folder of token ids, made when missing (default: benchmarks/.data)")
    flag(parser, "text", help="folder with WikiText-2's files (for --corpora wikitext2)")
    flag(parser, "smoke", action="store_true", help="three steps of everything: whether it runs, not how good it is")
    flag(parser, "together", type=positive, default=4, help="trainings at once in each process (default: 4)")
    flag(parser, "settled", action="store_true", help="no grids: each grid's first setting, which earlier trials found best")
    flag(parser, "no_record", action="store_true", help="train only; another process writes the rows")

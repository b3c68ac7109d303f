"""`lsm caption`: captions of a dataset's windows, ours or a model's, and the vocabulary that they need."""

from __future__ import annotations

import argparse
import itertools
import json
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm_jax.cli.evaluate import at_least_one
from lsm_jax.cli.options import check_needed, given, whole_number
from lsm_jax.cli.places import data_folder, output, run_folder
from lsm_jax.errors import UserError

if TYPE_CHECKING:
    from lsm_jax.captions.caption import Captioner, CaptionStatistics
    from lsm_jax.data.store import WindowSource
    from lsm_jax.windows import Window

HELP = "describe days in words: statistics, trends and peaks, activities and sleep"
EXAMPLE = "lsm caption --data data/synth --level semantic --split test --out captions.jsonl"

_NUM_SHOWN = 3  # captions on the terminal
_VOCABULARY = 4000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm caption`."""
    parser.add_argument("--data", type=data_folder, required=True, metavar="DIR", help="the dataset to describe")
    parser.add_argument(
        "--level",
        metavar="L",
        help="statistical, structural, semantic, several joined by +, or all (semantic)",
    )
    parser.add_argument(
        "--workdir",
        type=run_folder,
        metavar="W",
        help="let the run in this folder write captions, at its own levels",
    )
    parser.add_argument("--decode", metavar="D", help="of a run: greedy, beam, nucleus (greedy)")
    parser.add_argument("--step", type=int, metavar="N", help="of a run: this checkpoint; the newest where left out")
    parser.add_argument("--batch-size", type=int, metavar="B", help="of a run: windows per call (32)")
    parser.add_argument("--split", default="train", metavar="S", help="train, validation or test (%(default)s)")
    parser.add_argument("--epoch", type=int, metavar="N", help="each epoch has other words (0)")
    parser.add_argument(
        "--seed", type=whole_number, metavar="N", help="another seed, other words; of a run, with --decode nucleus (0)"
    )
    parser.add_argument(
        "--out",
        type=output,
        metavar="FILE.jsonl",
        help="a line per window: example, participant, start, level, text; FILE.summary.json beside it",
    )
    parser.add_argument(
        "--tokenizer",
        type=output,
        metavar="OUT.json",
        help="learn a vocabulary from the training split's captions, and put their lengths into the data card",
    )
    parser.add_argument(
        "--vocabulary", type=int, metavar="V", help=f"of --tokenizer: ids of the vocabulary at most ({_VOCABULARY})"
    )


def run(args: argparse.Namespace) -> int:
    """Writes or prints the captions and their statistics, and trains a tokenizer if asked to."""
    from lsm_jax.captions.caption import Captioner, CaptionStatistics, parse_levels
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.data.store import open_dataset
    from lsm_jax.data.text import learn_vocabulary

    _check_options(args)
    epoch, seed = args.epoch or 0, args.seed or 0
    level = args.level or "semantic"
    captioner = Captioner(parse_levels(level), seed)
    dataset = open_dataset(args.data)
    source = dataset.source(args.split)
    if not len(source):
        raise UserError(f"{args.data}: its {args.split} split holds no window; choose another --split.")
    statistics, started = CaptionStatistics(), time.perf_counter()
    with progress_bar(f"captions of {dataset.name}: windows") as report:
        if args.workdir:
            level, lines = _model_lines(args, source, statistics, report)
        else:
            lines = _template_lines(source, captioner, epoch, statistics, report)
        texts = _write_lines(args.out, lines) if args.out else _first_texts(lines)
    summary = {"dataset": dataset.name, "split": args.split, "level": level, "seed": seed}
    summary |= {"epoch": epoch, "seconds": round(time.perf_counter() - started, 2)} | statistics.summary()
    _print_summary(summary, texts)
    if args.tokenizer:
        allowed = _VOCABULARY if args.vocabulary is None else args.vocabulary
        tokenizer, summary["tokenizer"] = learn_vocabulary(dataset, captioner, allowed, epoch)
        tokenizer.save(args.tokenizer)
        _print_vocabulary(args.tokenizer, allowed, summary["tokenizer"])
        try:
            dataset.add_to_card("captions", {"+".join(captioner.levels): summary["tokenizer"]})
        except OSError as error:
            print(f"{dataset.path / 'data_card.json'}: left as it is, it cannot be written ({error.strerror})")
    if args.out:
        args.out.with_suffix(".summary.json").write_text(json.dumps(summary, indent=1))
        print(args.out)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """UserError for values out of range and options that do not go together."""
    at_least_one("--batch-size", args.batch_size)
    if (args.epoch or 0) < 0:
        raise UserError(f"--epoch {args.epoch}: give 0 or more.")
    if args.out and args.out.suffix != ".jsonl":
        raise UserError(f"--out {args.out}: name a file that ends in .jsonl.")
    check_needed(args, "workdir", ["decode", "step", "batch_size"])
    check_needed(args, "tokenizer", ["vocabulary"])
    if args.workdir and given(args, ("level", "tokenizer", "epoch")):
        raise UserError(
            "--workdir: a run has its own level and vocabulary; leave out --level, --tokenizer and --epoch."
        )
    if args.workdir and args.seed is not None and args.decode != "nucleus":
        raise UserError("--seed: a run draws words with --decode nucleus only; add that, or leave out --seed.")


def _template_lines(
    source: WindowSource,
    captioner: Captioner,
    epoch: int,
    statistics: CaptionStatistics,
    report: Callable[[int, int], None],
) -> Iterator[dict[str, Any]]:
    """A line of output for each window, with our caption."""
    from lsm_jax.data.text import captioned_windows

    level = "+".join(captioner.levels)
    for index, window, caption in captioned_windows(source, captioner, epoch):
        statistics.add(caption.text, caption.facts)
        yield _line(index, window, level, caption.text)
        report(index + 1, len(source))


def _model_lines(
    args: argparse.Namespace, source: WindowSource, statistics: CaptionStatistics, report: Callable[..., None]
) -> tuple[str, Iterator[dict[str, Any]]]:
    """The levels of a run, and a line of output for each window, with the run's caption."""
    from lsm_jax.captions.grammar import facts_of
    from lsm_jax.evals.captioning import Captioning
    from lsm_jax.train.loop import use_compile_cache
    from lsm_jax.train.run import load_run

    use_compile_cache()
    loaded = load_run(args.workdir, args.step)
    suite = Captioning(**given(args, ("batch_size", "seed", "decode")), progress=report)
    level = str(loaded.config.language.levels)

    def lines() -> Iterator[dict[str, Any]]:
        for _, rows in suite.generate(loaded, source):
            for info, text in rows:
                statistics.add(text, facts_of(text))
                yield _line(info.index, info.window, level, text) | {"step": loaded.step, "decode": suite.decode}

    return level, lines()


def _line(index: int, window: Window, level: str, text: str) -> dict[str, Any]:
    person, start = window.participant, window.start.isoformat()
    return {"example": index, "participant": person, "start": start, "level": level, "text": text}


def _write_lines(out: Path, lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Writes the file completely or not at all, and returns no text to print."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out.") from None
    return []


def _first_texts(lines: Iterator[Mapping[str, Any]]) -> list[str]:
    """The first few texts. Reads all lines, so that the statistics are of the whole split."""
    texts = (line["text"] for line in lines if line["text"])
    first = list(itertools.islice(texts, _NUM_SHOWN))
    for _ in texts:
        pass
    return first


def _print_summary(summary: Mapping[str, Any], texts: Iterable[str]) -> None:
    for text in texts:
        print(textwrap.fill(text, 120) + "\n")
    windows, seconds = summary["windows"], summary["seconds"]
    facts = ", ".join(f"{kind} {count:,}" for kind, count in summary["facts"].items())
    print(
        f"{summary['dataset']}, {summary['split']}, {summary['level']}: {windows:,} windows in {seconds:.1f} s "
        f"({windows / max(seconds, 1e-3):,.0f} a second); {summary['empty']:,} with nothing to say; words each: "
        f"median {summary['words']['median']}, most {summary['words']['most']}\nfacts: {facts}"
    )


def _print_vocabulary(file: Path, allowed: int, lengths: Mapping[str, Any]) -> None:
    tokens = lengths["tokens"]
    print(
        f"{file}: {lengths['vocabulary']:,} ids ({allowed:,} allowed) from {lengths['captions']:,} "
        f"captions; tokens each, begin and end included: median {tokens['median']:,}, 99th percentile "
        f"{tokens['99th percentile']:,}, most {tokens['most']:,}"
    )

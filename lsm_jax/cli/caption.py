"""`lsm caption`: what each window of a dataset shows, in words, ours or a run's; and the vocabulary they need."""

from __future__ import annotations

import argparse
import itertools
import json
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm_jax.cli.evaluate import at_least_one
from lsm_jax.errors import UserError

if TYPE_CHECKING:
    from lsm_jax.captions.caption import Captioner
    from lsm_jax.captions.facts import Fact
    from lsm_jax.data.store import Dataset, WindowSource
    from lsm_jax.windows import Window

HELP = "describe days in words: statistics, trends and peaks, activities and sleep"
EXAMPLE = "lsm caption --data data/synth --level semantic --split test --out captions.jsonl"

_SHOWN = 3
_LEARNT_FROM = 50_000  # captions at most; more add no words
_LENGTHS = (256, 512, 1024)  # tokens, the lengths SensorLM publishes for its levels (arXiv 2506.09108)
_SILENCE = {
    "statistical": "no channel that captions speak of was observed for half an hour",
    "structural": "no channel was recorded long enough without a gap to show a trend, peak or drop",
    "semantic": "no activity, sleep, mood, meal or session was logged while something was recorded; `[[events]]` of a "
    "mapping file bring such logs in",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm caption`."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the dataset to describe")
    parser.add_argument(
        "--level",
        metavar="L",
        help="statistical, structural, semantic, several joined by +, or all (semantic)",
    )
    parser.add_argument(
        "--workdir", type=Path, metavar="W", help="let the run in this folder write the captions, at its own levels"
    )
    parser.add_argument("--decode", default="greedy", metavar="D", help="of a run: greedy, beam, nucleus (%(default)s)")
    parser.add_argument("--step", type=int, metavar="N", help="of a run: this checkpoint; the newest where left out")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="of a run: windows per call (32)")
    parser.add_argument("--split", default="train", metavar="S", help="train, validation or test (%(default)s)")
    parser.add_argument("--epoch", type=int, default=0, metavar="N", help="each epoch has other words (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other words (%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.jsonl",
        help="a line per window: example, participant, start, level, text; FILE.summary.json beside it",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="OUT.json",
        help="learn a vocabulary from the training split's captions, and put their lengths into the data card",
    )
    parser.add_argument(
        "--vocabulary", type=int, default=4000, metavar="V", help="ids of the vocabulary at most (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes or shows the captions, trains the tokenizer where asked for, and prints what they hold."""
    from lsm_jax.captions.caption import Captioner, parse_levels
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.data.store import open_dataset

    if args.workdir and (args.level or args.tokenizer or args.epoch):
        raise UserError(
            "--workdir: a run has its own level and vocabulary; leave out --level, --tokenizer and --epoch."
        )
    at_least_one("--batch-size", args.batch_size)
    for name in ("epoch", "seed"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} {getattr(args, name)}: give 0 or more.")
    if args.out and args.out.suffix != ".jsonl":
        raise UserError(f"--out {args.out}: name a file that ends in .jsonl.")
    level = args.level or "semantic"
    captioner = Captioner(parse_levels(level), args.seed)
    dataset = open_dataset(args.data)
    source = dataset.source(args.split)
    if not len(source):
        raise UserError(f"{args.data}: its {args.split} split holds no window; choose another --split.")
    tally, started = _Tally(), time.perf_counter()
    with progress_bar(f"captions of {dataset.name}: windows") as tell:
        if args.workdir:
            level, lines = _generated_lines(args, source, tally, tell)
        else:
            lines = _lines(source, captioner, args.epoch, tally, tell)
        shown = _write_lines(args.out, lines) if args.out else _first_texts(lines)
    summary = {"dataset": dataset.name, "split": args.split, "level": level, "seed": args.seed}
    summary |= {"epoch": args.epoch, "seconds": round(time.perf_counter() - started, 2)} | tally.summary()
    _print_summary(summary, shown)
    if args.tokenizer:
        summary["tokenizer"] = _learn_vocabulary(args, dataset, captioner)
    if args.out:
        args.out.with_suffix(".summary.json").write_text(json.dumps(summary, indent=1))
        print(args.out)
    return 0


class _Tally:
    """What a stream of captions holds."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self._facts: Counter[str] = Counter()

    def add(self, text: str, facts: Iterable[Fact]) -> None:
        self.words.append(len(text.split()))
        self._facts.update(fact.kind for fact in facts)

    def summary(self) -> dict[str, Any]:
        said = sorted(count for count in self.words if count) or [0]
        return {
            "windows": len(self.words),
            "empty": self.words.count(0),
            "words": {"median": said[len(said) // 2], "most": said[-1]},
            "facts": dict(self._facts.most_common()),
        }


def _lines(
    source: WindowSource, captioner: Captioner, epoch: int, tally: _Tally, tell: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    """A line per window; UserError where there is nothing to say of any."""
    for example in range(len(source)):
        window = source[example]
        caption = captioner(window, epoch)
        tally.add(caption.text, caption.facts)
        yield _line(example, window, "+".join(captioner.levels), caption.text)
        tell(example + 1, len(source))
    if not any(tally.words):
        reasons = "; ".join(f"{level}: {_SILENCE[level]}" for level in captioner.levels)
        raise UserError(f"{source.path}: nothing to say of any of the split's {len(source)} windows ({reasons}).")


def _generated_lines(
    args: argparse.Namespace, source: WindowSource, tally: _Tally, tell: Callable[[int, int], None]
) -> tuple[str, Iterator[dict[str, Any]]]:
    """The level that a run speaks at, and a line per window in its words."""
    from lsm_jax.captions.grammar import facts_of
    from lsm_jax.evals.captioning import Captioning
    from lsm_jax.train.loop import use_compile_cache
    from lsm_jax.train.run import load_run

    use_compile_cache()
    loaded = load_run(args.workdir, args.step)
    suite = Captioning(batch_size=args.batch_size, seed=args.seed, decode=args.decode, progress=tell)
    level = str(loaded.config.language.levels)

    def lines() -> Iterator[dict[str, Any]]:
        for _, rows in suite.generate(loaded, source):
            for info, text in rows:
                tally.add(text, facts_of(text))
                yield _line(info.index, info.window, level, text) | {"step": loaded.step, "decode": args.decode}

    return level, lines()


def _line(example: int, window: Window, level: str, text: str) -> dict[str, Any]:
    who, start = window.participant, window.start.isoformat()
    return {"example": example, "participant": who, "start": start, "level": level, "text": text}


def _write_lines(out: Path, lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Writes the file whole or not at all; shows nothing."""
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
    """The first few texts; takes all lines, so that the summary is of the whole split."""
    texts = (line["text"] for line in lines if line["text"])
    shown = list(itertools.islice(texts, _SHOWN))
    for _ in texts:
        pass
    return shown


def _learn_vocabulary(args: argparse.Namespace, dataset: Dataset, captioner: Captioner) -> dict[str, Any]:
    """Trains and saves the tokenizer; how many tokens captions have goes to the terminal and the data card."""
    import numpy as np

    from lsm_jax.captions.tokenizer import Tokenizer

    source = dataset.source("train")
    places = np.linspace(0, len(source) - 1, min(len(source), _LEARNT_FROM)).astype(int).tolist()
    texts = [text for place in places if (text := captioner(source[place], args.epoch).text)]
    tokenizer = Tokenizer.train(texts, args.vocabulary)
    tokenizer.save(args.tokenizer)
    tokens = tokenizer.encode(texts, _LENGTHS[0]).lengths
    median, high, most = (int(quantile) for quantile in np.percentile(tokens, (50, 99, 100)))
    lengths = {
        "captions": len(texts),
        "vocabulary": tokenizer.vocabulary,
        "tokens": {"median": median, "99th percentile": high, "most": most},
        "share longer than": {str(length): round(float((tokens > length).mean()), 4) for length in _LENGTHS},
    }
    print(
        f"{args.tokenizer}: {tokenizer.vocabulary:,} ids ({args.vocabulary:,} allowed) from {len(texts):,} captions; "
        f"tokens each, begin and end included: median {median:,}, 99th percentile {high:,}, most {most:,}"
    )
    _add_to_card(dataset, "+".join(captioner.levels), lengths)
    return lengths


def _add_to_card(dataset: Dataset, level: str, lengths: Mapping[str, Any]) -> None:
    card = {**dataset.card, "captions": {**dataset.card.get("captions", {}), level: lengths}}
    file = dataset.path / "data_card.json"
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(card, indent=1))
        partial.replace(file)
    except OSError as error:
        print(f"{file}: left as it is, it cannot be written ({error.strerror})")


def _print_summary(summary: Mapping[str, Any], shown: Iterable[str]) -> None:
    for text in shown:
        print(textwrap.fill(text, 120) + "\n")
    windows, seconds = summary["windows"], summary["seconds"]
    facts = ", ".join(f"{kind} {count:,}" for kind, count in summary["facts"].items())
    print(
        f"{summary['dataset']}, {summary['split']}, {summary['level']}: {windows:,} windows in {seconds:.1f} s "
        f"({windows / max(seconds, 1e-3):,.0f} a second); {summary['empty']:,} with nothing to say; words each: "
        f"median {summary['words']['median']}, most {summary['words']['most']}\nfacts: {facts}"
    )

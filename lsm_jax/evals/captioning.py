"""The captioning suite: generated captions compared with reference captions, and checked against the day.

Overlap with the references: BLEU and chrF (sacrebleu) and ROUGE-L (rouge-score), against three wordings of the day.
Truth: `captions.fact_check` reads the text back to facts. A predicted event is correct where name and kind agree and
both times are within 15 minutes; every true event counts once.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from lsm_jax.captions.fact_check import Tolerance, Verdict, check_sentences, same_event
from lsm_jax.captions.facts import STATISTICS, Fact, clock_minutes
from lsm_jax.captions.grammar import Statement, facts_of, render
from lsm_jax.captions.semantic import event_facts
from lsm_jax.data.loader import Batch, WindowInfo
from lsm_jax.data.store import Dataset, WindowSource
from lsm_jax.errors import UserError, nearest
from lsm_jax.evals.classification import standardised
from lsm_jax.evals.days import captioner, day_statistics, embed_windows, read_days
from lsm_jax.evals.result import Row
from lsm_jax.evals.statistics import bootstrap, index_of, score_and_interval, weighted_ratio
from lsm_jax.evals.suite import DatasetSuite
from lsm_jax.nn.generation import Decoding
from lsm_jax.objectives import sensor_language
from lsm_jax.train.run import Run
from lsm_jax.windows import MINUTES_PER_DAY, Window

DECODINGS = {"greedy": Decoding(), "beam": Decoding(beams=4), "nucleus": Decoding(temperature=1.0, nucleus=0.9)}
_REFERENCES = 3  # wordings, of epochs 0, 1, 2
_COMMON_SHARE = 0.5  # of the training days
_EVENT_KINDS = ("activity", "session", "sleep", "meal")
_EVENT_GROUPS = {"activity": ("activity", "session"), "sleep": ("sleep",)}

Counts = dict[str, tuple[float, float]]
FactKey = tuple[str, str]  # kind and subject
ScoreAndInterval = tuple[float | None, list[float] | None]


@dataclasses.dataclass(frozen=True)
class Captioning(DatasetSuite):
    """Scores a run's captions beside baselines.

    `nearest_caption` is the caption of the most similar training day, by the run's embedding where it has one and by
    day statistics otherwise. `mean_day` and `usual_activity` are the same text for every day. `reworded` is our own
    caption in a fourth wording: the overlap that a true caption reaches.

    Attributes:
      decode: a name of `DECODINGS`.
    """

    name: ClassVar[str] = "captioning"
    objectives: ClassVar[tuple[str, ...]] = ("cap", "coca")

    decode: str = "greedy"

    def __post_init__(self) -> None:
        if self.decode not in DECODINGS:
            raise UserError(
                f"--decode {self.decode}: there is no such decoding.{nearest(self.decode, DECODINGS)} "
                f"{', '.join(DECODINGS)}."
            )

    def score(self, run: Run, dataset: Dataset) -> tuple[list[Row], list[str], list[Row]]:
        """See `DatasetSuite.score`; the details are each generated caption with its template caption."""
        days = list(self._captioned_days(run, dataset))
        participants = [day.participant for day in days]
        person = index_of(participants)
        references = [[day.references[number] for day in days] for number in range(_REFERENCES)]
        size = {"windows": len(days), "people": len({*participants})}
        rows = []
        for method in days[0].captions:
            texts = [day.captions[method] for day in days]
            counts = [day.counts[method] for day in days]
            scores = overlap_scores(texts, references, person, self.seed) | truth_scores(counts, person, self.seed)
            for (task, measure), (score, interval) in scores.items():
                row = {"method": method, "task": task, "class": measure, "score": score, "ci95": interval}
                rows.append(row | size)
        details = [
            {"participant": day.participant, "text": day.captions["model"], "ours": day.references[0]} for day in days
        ]
        return rows, [f"{len(days)} days, decoded {self.decode}; BLEU and chrF from 0 to 100."], details

    def provenance(self, run: Run, **more: Any) -> dict[str, Any]:
        """See `Suite.provenance`."""
        return super().provenance(run, decode=self.decode, **more)

    def generate(self, run: Run, source: WindowSource) -> Iterator[tuple[Batch, list[tuple[WindowInfo, str]]]]:
        """Batches, and the caption that the run generates for each of their windows.

        Raises:
          UserError: a run that does not generate captions.
        """
        decoding, objective = DECODINGS[self.decode], sensor_language(run.objective)
        for batch, infos in self.batches(run.spec, source):
            ids = objective.generate(run.params, batch, run.words.vocabulary, decoding, self.seed)
            yield batch, list(zip(infos, run.words.decode(np.asarray(ids)[: len(infos)]), strict=True))

    def _captioned_days(self, run: Run, dataset: Dataset) -> Iterator[_CaptionedDay]:
        write = captioner(run)
        by_embedding = sensor_language(run.objective).compares_windows
        assert write is not None  # a run with text has caption levels
        train = read_days(
            run, dataset.nonempty_source("train"), self.without_limit, embed=by_embedding, statistics=not by_embedding
        )
        facts = [facts_of(text) for text in train.captions]
        constant = {"mean_day": mean_day(facts), "usual_activity": usual_activity(facts)}
        for batch, rows in self.generate(run, dataset.nonempty_source(self.split)):
            if by_embedding:
                most_similar = (embed_windows(run, batch) @ train.embeddings.T).argmax(axis=1)
            else:
                most_similar = _nearest_days(train.statistics, day_statistics(batch["values"], batch["observed"]))
            for (info, text), neighbour in zip(rows, most_similar, strict=False):
                window = info.window
                captions = {"model": text, "nearest_caption": train.captions[neighbour], **constant}
                captions["reworded"] = write(window, _REFERENCES).text
                references = [write(window, epoch).text for epoch in range(_REFERENCES)]
                counts = {method: check_caption(caption, window) for method, caption in captions.items()}
                yield _CaptionedDay(info.participant, captions, counts, references)


@dataclasses.dataclass(frozen=True)
class _CaptionedDay:
    """Captions of a day by method, what `check_caption` says of them, and our own in three wordings."""

    participant: str
    captions: Mapping[str, str]
    counts: Mapping[str, Counts]
    references: Sequence[str]


def overlap_scores(
    texts: Sequence[str], references: Sequence[Sequence[str]], person: Int[np.ndarray, " n"], seed: int
) -> dict[tuple[str, str], ScoreAndInterval]:
    """BLEU and chrF of the corpus, and mean ROUGE-L with its interval, of the days that have a reference.

    Args:
      references: by wording, then by day.
    """
    # Not above: rouge-score imports nltk, which takes seconds, and reports of runs need this module too.
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    rows = [row for row, text in enumerate(references[0]) if text]
    if not rows:
        return {}
    predicted, wordings = [texts[row] for row in rows], [[words[row] for row in rows] for words in references]
    scorer = RougeScorer(["rougeL"])
    pairs = zip(predicted, zip(*wordings, strict=True), strict=True)
    rouge = np.array([scorer.score_multi(of_day, text)["rougeL"].fmeasure for text, of_day in pairs])
    owner = index_of(person[rows].astype(str).tolist())
    replicates = bootstrap(weighted_ratio(rouge, np.ones(len(rouge))), owner, seed)
    return {
        ("overlap", "BLEU"): (BLEU().corpus_score(predicted, wordings).score, None),
        ("overlap", "chrF"): (CHRF().corpus_score(predicted, wordings).score, None),
        ("overlap", "ROUGE-L"): score_and_interval(replicates, int(owner.max()) + 1),
    }


def truth_scores(
    counts: Sequence[Counts], person: Int[np.ndarray, " n"], seed: int
) -> dict[tuple[str, str], ScoreAndInterval]:
    """Ratios of the counts summed over days, with their intervals; None for a ratio that no day has."""
    scores = {}
    for name in counts[0]:
        above, below = np.array([day[name] for day in counts], np.float64).T
        people = len({*person[below > 0].tolist()})
        scores["truth", name] = score_and_interval(bootstrap(weighted_ratio(above, below), person, seed), people)
    return scores


def check_caption(text: str, window: Window) -> Counts:
    """How much of a text is true of a window, as (numerator, denominator) by measure."""
    checked = check_sentences(text, window)
    unrecorded = sum(any(verdict is Verdict.UNRECORDED for _, verdict in sentence.facts) for sentence in checked)
    unread = sum(sentence.verdict is None for sentence in checked)
    facts = [pair for sentence in checked for pair in sentence.facts]
    numbers = [pair for pair in facts if pair[0].kind in STATISTICS]
    counts: Counts = {
        "true facts": (_count_true(facts), len(facts)),
        "true numbers": (_count_true(numbers), len(numbers)),
        "sentences unrecorded": (unrecorded, len(checked)),
        "sentences unread": (unread, len(checked)),
    }
    true_facts = event_facts(window)
    for group, kinds in _EVENT_GROUPS.items():
        predicted_events = [fact for fact, _ in facts if fact.kind in kinds]
        true_events = [fact for fact in true_facts if fact.kind in kinds]
        correct = count_correct(predicted_events, true_events)
        counts[f"{group} precision"] = correct, len(predicted_events)
        counts[f"{group} recall"] = correct, len(true_events)
        counts[f"{group} F1"] = 2 * correct, len(predicted_events) + len(true_events)
    return counts


def count_correct(predicted_events: Sequence[Fact], true_events: Sequence[Fact]) -> int:
    """How many true events were predicted, each counted once however often it was."""
    missed, tolerance = list(true_events), Tolerance()
    for fact in predicted_events:
        match = next((event for event in missed if same_event(fact, event, tolerance)), None)
        if match:
            missed.remove(match)
    return len(true_events) - len(missed)


def _nearest_days(train: Float[np.ndarray, "n f"], days: Float[np.ndarray, "b f"]) -> Int[np.ndarray, " b"]:
    """The training day nearest to each day, by standardised features."""
    references, queries = standardised(train, days)
    return np.array([np.square(references - query).sum(axis=1).argmin() for query in queries])


def _count_true(facts: Sequence[tuple[Fact, Verdict]]) -> int:
    return sum(verdict is Verdict.TRUE for _, verdict in facts)


def mean_day(days: Sequence[Iterable[Fact]]) -> str:
    """The statistics and events that at least half of the training days have, at their mean values and times."""
    facts = _facts_by_key(days)
    return _text([key for key, same in facts.items() if len(same) >= _COMMON_SHARE * len(days)], facts)


def usual_activity(days: Sequence[Iterable[Fact]]) -> str:
    """The activity or session that most training days have, at its mean times; empty where they have none."""
    facts = _facts_by_key(days)
    activities = [key for key in facts if key[0] in ("activity", "session")]
    return _text(sorted(activities, key=lambda key: -len(facts[key]))[:1], facts)


def _facts_by_key(days: Sequence[Iterable[Fact]]) -> dict[FactKey, list[Fact]]:
    """The first fact of each kind and subject of each day."""
    facts_by_key: dict[FactKey, list[Fact]] = defaultdict(list)
    for facts in days:
        first: dict[FactKey, Fact] = {}
        for fact in facts:
            if fact.kind in STATISTICS or (fact.kind in _EVENT_KINDS and fact.value is not None):
                first.setdefault((fact.kind, fact.subject), fact)
        for key, fact in first.items():
            facts_by_key[key].append(fact)
    return facts_by_key


def _text(keys: Sequence[FactKey], facts: dict[FactKey, list[Fact]]) -> str:
    """A sentence per event, in order of time, then one per channel that has all four statistics."""
    statements = []
    for kind, subject in keys:
        if kind in _EVENT_KINDS:
            form = "sleep_named" if kind == "sleep" and subject != "asleep" else kind
            statements.append(Statement(form, (_mean_event(facts[kind, subject]),)))
    statements.sort(key=lambda statement: statement.facts[0].start or 0)
    for channel in dict.fromkeys(subject for kind, subject in keys if kind in STATISTICS):
        if all((kind, channel) in keys for kind in STATISTICS):
            values = {kind: float(np.mean([fact.value or 0.0 for fact in facts[kind, channel]])) for kind in STATISTICS}
            statements.append(Statement("statistics", tuple(Fact(kind, channel, values[kind]) for kind in STATISTICS)))
    rng = np.random.default_rng(0)
    return " ".join(render(statement, rng) for statement in statements)


def _mean_event(facts: Sequence[Fact]) -> Fact:
    """An event from the mean start to the mean end."""
    start = _mean_time([fact.start or 0 for fact in facts]) % MINUTES_PER_DAY
    end = (_mean_time([fact.end or 0 for fact in facts]) - 1) % MINUTES_PER_DAY + 1
    return Fact(facts[0].kind, facts[0].subject, float(clock_minutes(start, end)), start, end)


def _mean_time(minutes: Sequence[int]) -> int:
    """The circular mean of times of day: that of 23:50 and 00:10 is midnight."""
    angles = 2 * np.pi * np.array(minutes) / MINUTES_PER_DAY
    mean = np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())
    return round(float(mean) / (2 * np.pi) * MINUTES_PER_DAY)

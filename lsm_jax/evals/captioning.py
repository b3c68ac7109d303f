"""The captioning suite: do a model's captions read like ours, and are they true of the day?

Overlap with reference captions comes from well-kept libraries: BLEU and chrF (sacrebleu) and ROUGE-L (rouge-score),
each against three wordings of the same day. Truth is what `fact_check` finds when the text is read back to facts:
events count as found where name and kind agree and both times are within 15 minutes, each event once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from lsm_jax.captions.fact_check import FactChecker, Tolerance, Verdict, same_event
from lsm_jax.captions.facts import STATISTICS, Fact
from lsm_jax.captions.grammar import facts_of, parse_sentence, sentences
from lsm_jax.captions.semantic import event_facts
from lsm_jax.data.loader import Batch, WindowInfo
from lsm_jax.data.store import Dataset, WindowSource
from lsm_jax.errors import UserError, nearest
from lsm_jax.evals.days import batches, captioner, day_statistics, embedded, read_days
from lsm_jax.evals.findings import Findings, Row, Settings
from lsm_jax.evals.probes import standardised
from lsm_jax.evals.ranking import numbered, replicated, score_and_interval, weighted_ratio
from lsm_jax.evals.results import provenance
from lsm_jax.evals.typical import mean_day, usual_activity
from lsm_jax.nn.generation import Decoding
from lsm_jax.objectives import sensor_language
from lsm_jax.train.run import Run
from lsm_jax.windows import Window

DECODINGS = {"greedy": Decoding(), "beam": Decoding(beams=4), "nucleus": Decoding(temperature=1.0, nucleus=0.9)}
_REFERENCES = 3  # wordings, of epochs 0, 1, 2
_GROUPS = {"activity": ("activity", "session"), "sleep": ("sleep",)}

Counts = dict[str, tuple[float, float]]


def evaluate_captioning(run: Run, datasets: Mapping[str, Dataset], settings: Settings) -> Findings:
    """Scores a run's captions and what can be said without it.

    Baselines: `nearest_caption`, that of the training day most like this one, by the run's embedding where it has one
    and by day statistics otherwise; `mean_day` and `usual_activity` (`typical`), the same words for every day.
    `reworded` is our own caption in a fourth wording: what overlap a caption that is true reaches.

    Raises:
      UserError: a run that does not write captions, or an unknown decoding.
    """
    decoding_named(settings.decode)
    results: list[Row] = []
    notes, details = [], []
    for name, dataset in datasets.items():
        texts, counts, participants = _written_and_judged(run, dataset, settings)
        people = len({*participants})
        person = numbered(participants)
        size = {"windows": len(participants), "people": people}
        references = [texts.pop(f"reference {number}") for number in range(_REFERENCES)]
        for method, said in texts.items():
            scores = {
                **overlaps(said, references, person, settings.seed),
                **truths(counts[method], person, settings.seed),
            }
            for (task, what), (score, interval) in scores.items():
                row = {"dataset": name, "method": method, "task": task, "class": what}
                results.append({**row, "score": score, "ci95": interval, **size})
        notes.append(f"{name}: {len(participants)} days, decoded {settings.decode}; BLEU and chrF from 0 to 100.")
        triples = zip(participants, texts["model"], references[0], strict=True)
        details += [{"dataset": name, "participant": who, "text": text, "ours": ours} for who, text, ours in triples]
    told = {"split": settings.split, "seed": settings.seed, "max_windows": settings.max_windows}
    return Findings("captioning", results, notes, {**provenance(run), **told, "decode": settings.decode}, details)


def decoding_named(name: str) -> Decoding:
    """One of `DECODINGS`; UserError for another name."""
    if name not in DECODINGS:
        raise UserError(
            f"--decode {name}: there is no such decoding.{nearest(name, DECODINGS)} {', '.join(DECODINGS)}."
        )
    return DECODINGS[name]


def written(
    run: Run, source: WindowSource, settings: Settings
) -> Iterator[tuple[Batch, list[tuple[WindowInfo, Window, str]]]]:
    """Batches, and the caption that the run writes for each of their windows.

    Raises:
      UserError: an unknown decoding, or a run that does not write captions.
    """
    decoding, objective = decoding_named(settings.decode), sensor_language(run.objective)
    for number, (batch, infos, windows) in enumerate(batches(run.spec, source, settings)):
        arrays, vocabulary = jax.tree.map(jnp.asarray, batch), run.words.vocabulary
        ids = objective.generate(run.params, arrays, vocabulary, decoding, settings.seed + number)
        texts = run.words.decode(np.asarray(ids)[: len(infos)])
        yield batch, list(zip(infos, windows, texts, strict=True))


def overlaps(
    texts: Sequence[str], references: Sequence[Sequence[str]], person: np.ndarray, seed: int
) -> dict[tuple[str, str], tuple[float | None, list[float] | None]]:
    """BLEU and chrF of the corpus, mean ROUGE-L with its interval; days without a reference have no part in it."""
    rows = [row for row, text in enumerate(references[0]) if text]
    if not rows:
        return {}
    said, wordings = [texts[row] for row in rows], [[words[row] for row in rows] for words in references]
    scorer = RougeScorer(["rougeL"])
    rouge = [
        scorer.score_multi([words[row] for words in wordings], text)["rougeL"].fmeasure for row, text in enumerate(said)
    ]
    whose = numbered(person[rows].astype(str).tolist())
    mean = replicated(weighted_ratio(np.array(rouge), np.ones(len(rouge))), whose, seed)
    return {
        ("overlap", "BLEU"): (BLEU().corpus_score(said, wordings).score, None),
        ("overlap", "chrF"): (CHRF().corpus_score(said, wordings).score, None),
        ("overlap", "ROUGE-L"): score_and_interval(mean, int(whose.max()) + 1),
    }


def truths(
    counts: Sequence[Counts], person: np.ndarray, seed: int
) -> dict[tuple[str, str], tuple[float | None, list[float] | None]]:
    """Shares over all days, with their intervals; None of what no day has."""
    scores = {}
    for name in counts[0]:
        above, below = np.array([each[name] for each in counts]).T
        people = len({*person[below > 0].tolist()})
        scores["truth", name] = score_and_interval(replicated(weighted_ratio(above, below), person, seed), people)
    return scores


def judged(text: str, window: Window) -> Counts:
    """What of a text is true of a window, as (how many, of how many)."""
    judge, said = FactChecker(window), sentences(text)
    statements = [statement for statement in map(parse_sentence, said) if statement]
    verdicts = [[(fact, judge(fact)) for fact in statement.facts] for statement in statements]
    unrecorded = sum(any(verdict is Verdict.UNRECORDED for _, verdict in facts) for facts in verdicts)
    every = [pair for facts in verdicts for pair in facts]
    numbers = [pair for pair in every if pair[0].kind in STATISTICS]
    counts: Counts = {
        "true facts": (_true(every), len(every)),
        "true numbers": (_true(numbers), len(numbers)),
        "sentences unrecorded": (unrecorded, len(said)),
        "sentences unread": (len(said) - len(statements), len(said)),
    }
    happened = event_facts(window)
    for group, kinds in _GROUPS.items():
        told, real = ([fact for fact in facts if fact.kind in kinds] for facts in ([f for f, _ in every], happened))
        hits = events_found(told, real)
        counts[f"{group} precision"] = hits, len(told)
        counts[f"{group} recall"] = hits, len(real)
        counts[f"{group} F1"] = 2 * hits, len(told) + len(real)
    return counts


def events_found(told: Sequence[Fact], real: Sequence[Fact]) -> int:
    """How many of the real events were told, each once however often it is told."""
    left, tolerance = list(real), Tolerance()
    for fact in told:
        match = next((event for event in left if same_event(fact, event, tolerance)), None)
        if match:
            left.remove(match)
    return len(real) - len(left)


def _written_and_judged(
    run: Run, dataset: Dataset, settings: Settings
) -> tuple[dict[str, list[str]], dict[str, list[Counts]], list[str]]:
    """Texts by method, references among them; counts by method; and whose each day is."""
    say, objective = captioner(run), sensor_language(run.objective)
    assert say is not None  # a run with words has levels
    by_embedding = objective.language.contrasts
    train = read_days(
        run, dataset.held_out("train"), settings.learning, embed=by_embedding, statistics=not by_embedding
    )
    facts = [facts_of(text) for text in train.texts]
    typical = {"mean_day": mean_day(facts), "usual_activity": usual_activity(facts)}
    texts: dict[str, list[str]] = {}
    counts: dict[str, list[Counts]] = {}
    participants = []
    for batch, rows in written(run, dataset.held_out(settings.split), settings):
        if by_embedding:
            likest = (embedded(run, batch) @ train.embeddings.T).argmax(axis=1)
        else:
            likest = _likest(train.statistics, day_statistics(batch["values"], batch["observed"]))
        for (info, window, text), neighbour in zip(rows, likest, strict=False):
            said = {"model": text, "nearest_caption": train.texts[neighbour], **typical}
            said["reworded"] = say(window, _REFERENCES).text
            participants.append(info.participant)
            for method, words in said.items():
                counts.setdefault(method, []).append(judged(words, window))
            said |= {f"reference {number}": say(window, number).text for number in range(_REFERENCES)}
            for method, words in said.items():
                texts.setdefault(method, []).append(words)
    return texts, counts, participants


def _likest(train: Float[np.ndarray, "n f"], days: Float[np.ndarray, "b f"]) -> np.ndarray:
    """The training day nearest to each day, in standard deviations of the features."""
    known, asked = standardised(train, days)
    return np.array([np.square(known - day).sum(axis=1).argmin() for day in asked])


def _true(pairs: Sequence[tuple[Fact, Verdict]]) -> int:
    return sum(verdict is Verdict.TRUE for _, verdict in pairs)

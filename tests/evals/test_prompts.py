"""Prompt files: what they say, and every way in which one is refused by file and key."""

import pytest
from language_run import PROMPTS

from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.errors import UserError
from lsm_jax.evals.prompts import SHIPPED, read_prompts, shipped_prompts
from lsm_jax.synth.activities import NAMES


@pytest.fixture
def written(tmp_path):
    def write(text):
        file = tmp_path / "prompts.toml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def test_placeholders_are_filled_once_for_each_time(written):
    texts = read_prompts(written(PROMPTS)).texts
    assert list(texts) == ["running", "stair climbing", "yoga"]
    assert [text for _, text in texts["stair climbing"]] == [
        "The wearer did some stair climbing between 01:00 and 01:40.",
        "The wearer did some stair climbing between 02:00 and 02:40.",
        "Stair climbing was logged.",
    ]
    assert texts["yoga"] == [("classes.yoga.prompts[0]", "The wearer was busy with yoga.")]


def test_sentences_are_read_after_each_context(written):
    prompts = read_prompts(written("contexts = ['Slept.', 'Ate.']\n" + PROMPTS))
    assert prompts.contexts == ["Slept.", "Ate."]
    assert [text for _, text in prompts.texts["yoga"]] == [
        "Slept. The wearer was busy with yoga.", "Ate. The wearer was busy with yoga.",
    ]  # fmt: skip
    assert len(prompts.texts["running"]) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates = ['{activty}']\n[classes.yoga]", r"templates\[0\]: unknown .*{activty}\. Did you mean 'activity'"),
        ("templates = ['{activity!r}']\n[classes.yoga]", r"templates\[0\]: unknown placeholder"),
        ("templates = ['{activity:>99999999}']\n[classes.yoga]", r"templates\[0\]: unknown placeholder"),
        ("templates = ['{activity.__class__}']\n[classes.yoga]", r"templates\[0\]: unknown placeholder"),
        ("templates = ['some {activity']\n[classes.yoga]", r"templates\[0\]: expected '}'"),
        ("templates = ['At {start}.']\n[classes.yoga]", r"templates\[0\] has a time, and the file no `times`"),
        ("times = ['7-8']\ntemplates = ['At {start}.']\n[classes.yoga]", r"times\[0\] '7-8'"),
        ("[classes.yoga]\nprompts = []", r"classes\.yoga has no prompt"),
        ("[classes.yoga]\nprompts = ['fine', ' ']", r"classes\.yoga\.prompts\[1\] is empty"),
        ("[classes.yoga]\nprompts = 'yoga'", r"classes\.yoga\.prompts must be a list"),
        ("[classes.yoga]\nprompt = ['yoga']", r"unknown key classes\.yoga\.prompt\. Did you mean 'prompts'"),
        ("template = []", r"unknown key template\. Did you mean 'templates'"),
        ("templates = ['yoga']", "it names no class"),
        ("classes = ['yoga']", "classes must be a table"),
        ("templates = [1 2]", r"not TOML, or damaged: .*line 1"),
        (b"templates = ['\xff']", "not TOML, or damaged"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_by_name_and_key(written, text, message):
    with pytest.raises(UserError, match=f"prompts.toml: {message}"):
        read_prompts(written(text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml: cannot be read"):
        read_prompts(tmp_path / "none.toml")


def test_a_prompt_too_long_is_refused(written):
    prompts = read_prompts(written(PROMPTS))
    tokenizer = Tokenizer.train([PROMPTS], 300)
    assert len(prompts.sentences(tokenizer, 90)) == 7
    with pytest.raises(UserError, match=r"templates\[0\] has \d+ tokens and the model reads language\.text_length=20"):
        prompts.sentences(tokenizer, 20)


def test_the_shipped_files_serve_the_data_they_are_for():
    prompts, absent = shipped_prompts({*NAMES})
    assert (prompts.file.name, absent) == ("activities.toml", []) and {*prompts.texts} == {*NAMES}
    prompts, absent = shipped_prompts({"stress", "aerobic"})
    assert prompts.file == SHIPPED / "e4.toml" and absent == ["anaerobic"]
    with pytest.raises(UserError, match=r"no prompt file in .* fits the data's activities"):
        shipped_prompts({"sitting"})

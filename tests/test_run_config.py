"""What a run folder says of itself: read as it was written, and one error for what is damaged."""

import dataclasses
import json

import pytest

from metaguide import run_config
from metaguide.models.tuned import TRAINS
from metaguide.run_config import FieldError, RunConfig, Served, stage_serving
from metaguide.training.checkpoint import CheckpointError

RATE, STEPS = 0.3, 60
SERVING = {
    "sentiment": Served("seed0/multitask", "head-only", 0.1, 3),
    "questions": Served("seed0/metatrain-maml", "maml", 0.01, 3),
}
RUN = RunConfig(
    width=8,
    layers=1,
    heads=2,
    dropout=0.1,
    channels=(2, 4),
    image=False,
    way=3,
    text_tokens=8,
    pair_tokens=16,
    name_tokens=4,
    max_answer_tokens=4,
    vocabulary=300,
    serving=SERVING,
    seed=1,
)
STAGE = dataclasses.replace(
    RUN,
    stage="metatrain",
    learner="maml",
    seed=0,
    serving=stage_serving("maml", RATE, STEPS),
)

EARLIER = {
    "model": {"width": 8, "layers": 1, "heads": 2, "dropout": 0.1, "way": 3, "channels": [2, 4],
              "image": False},
    "text": {"text": 8, "pair": 16, "name": 4},
    "episodes": {"longest": 4},
    "metatrain": {"inner_rate": RATE},
    "adapt": {"steps": STEPS},
}  # fmt: skip
"""The config of an experiment, as run folders had it before they said it themselves."""

EARLIER_STAGE = {"stage": "metatrain", "learner": "maml", "seed": 0}
EARLIER_SERVING = {
    "sentiment": {"folder": "seed0/multitask", "arm": "head-only", "rate": 0.1, "steps": 3},
    "questions": {"folder": "seed0/metatrain-maml", "arm": "maml", "rate": 0.01, "steps": 3},
}


def put(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return folder


def changed(of, dotted, value):
    """A copy of a tree with one value changed; taken out where it is `...`."""
    of, (*path, last) = json.loads(json.dumps(of)), dotted.split(".")
    inner = of
    for part in path:
        inner = inner[part]
    inner[last] = value
    if value is ...:
        del inner[last]
    return of


KNOWING = dataclasses.replace(RUN, seed=None, known_classes=("case", "手机"))


@pytest.mark.parametrize("config", [RUN, STAGE, KNOWING])
def test_what_is_written_is_read(tmp_path, config):
    """Fault: a field is lost on the way, or comes back as another type."""
    run_config.write(config, tmp_path)
    assert run_config.read(tmp_path) == config
    found = json.loads((tmp_path / run_config.FILE).read_text())
    assert found["version"] == run_config.VERSION


@pytest.mark.parametrize("learner", ["", "maml", "anil", "prototypical", "lstm", "lstm-head"])
def test_a_stage_folder_of_before_is_read_as_it_was(tmp_path, learner):
    """Fault: a folder that was written before the file had a version is not served, or otherwise
    than it was."""
    stage = {"stage": "metatrain" if learner else "multitask", "learner": learner, "seed": 3}
    found = run_config.read(put(tmp_path, config=EARLIER, stage=stage))
    serving = stage_serving(learner, RATE, STEPS)
    assert found == dataclasses.replace(RUN, vocabulary=None, serving=serving, **stage)
    by = {task: one.method for task, one in found.serving.items()}
    assert by["recommendation"] == ("lstm-head" if learner == "lstm-head" else "head-only")
    own = learner in ("maml", "lstm", "lstm-head")
    assert by["sentiment"] == (learner if own else "fine-tuning")
    learned = learner in ("lstm", "lstm-head")
    assert found.serving["sentiment"].learning_rate == (1.0 if learned else RATE)
    assert {one.steps for one in found.serving.values()} == {STEPS}
    assert found.about == stage


def test_a_guide_folder_of_before_is_read_as_it_was(tmp_path):
    """Faults: what served is taken from the stage's settings; what a stage in the same folder says
    of its training is lost."""
    found = run_config.read(put(tmp_path, config=EARLIER, serving=EARLIER_SERVING))
    assert found == dataclasses.replace(RUN, vocabulary=None, seed=None) and not found.about
    both = run_config.read(put(tmp_path, stage=EARLIER_STAGE))
    assert both.serving == SERVING and both.about == EARLIER_STAGE


def test_a_folder_that_was_gone_on_with_is_read_as_it_is_now(tmp_path):
    """Fault: files of before, which nobody writes any more, take the place of the new one."""
    put(tmp_path, config=EARLIER, serving=EARLIER_SERVING)
    now = dataclasses.replace(RUN, seed=9)
    run_config.write(now, tmp_path)
    assert run_config.read(tmp_path) == now


def test_a_folder_that_says_nothing_is_an_error_that_names_a_file(tmp_path):
    """Fault: a wrong folder ends in a traceback, or is taken for a run."""
    assert run_config.find(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match="nowhere/run_config.json: no such file; give the f"):
        run_config.read(tmp_path / "nowhere")
    put(tmp_path, config=EARLIER)
    assert run_config.find(tmp_path) is None
    with pytest.raises(CheckpointError, match="stage.json: no such file"):
        run_config.read(tmp_path)


def test_a_file_of_a_later_version_asks_for_an_update(tmp_path):
    """Faults: a field that has another meaning by then is read as of now; a user is told to train
    anew what is whole."""
    run_config.write(RUN, tmp_path)
    path = tmp_path / run_config.FILE
    for version in (run_config.VERSION + 1, 2**70):
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
        with pytest.raises(CheckpointError, match=rf"{path}: version is .*; update metaguide"):
            run_config.read(tmp_path)


@pytest.mark.parametrize("version", range(1, run_config.VERSION))
def test_a_file_of_an_earlier_version_is_read_on(tmp_path, version):
    """Fault: a folder of the version before is refused, or trains an encoder that was frozen."""
    run_config.write(RUN, tmp_path)
    path = tmp_path / run_config.FILE
    found = json.loads(path.read_text())
    for later in range(version + 1, run_config.VERSION + 1):
        added = run_config.ADDED.get(later, {})
        found = {name: one for name, one in found.items() if name not in added}
    path.write_text(json.dumps({**found, "version": version}))
    assert run_config.read(tmp_path) == RUN


@pytest.mark.parametrize("version", [2, 3, 4])
def test_ngrams_of_an_earlier_version_are_refused(tmp_path, version):
    """Fault: a guide reads n-grams under numbers that it was not trained on, and answers at
    random."""
    run_config.write(dataclasses.replace(RUN, buckets=64), tmp_path)
    path = tmp_path / run_config.FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    with pytest.raises(CheckpointError, match=f"version is {version}, whose n-grams .*train the"):
        run_config.read(tmp_path)


def test_what_trains_is_what_the_encoder_can_train():
    """Faults: two lists of the ways to train an encoder disagree; LoRA without a rank is a division
    by 0 far from here."""
    assert ("frozen", *TRAINS) == run_config.TRAINED
    with pytest.raises(FieldError, match="encoder_rank is 0; give the rank"):
        dataclasses.replace(RUN, encoder_train="lora", encoder_width=8)


BAD = {
    "width": ("8", 1e308, -4, None, [8], 0, True, 2**70),
    "layers": (-1, 2**70, 1.0),
    "heads": (0, 3, -1, None),
    "dropout": (1.0, -0.1, float("nan"), "0.1", None),
    "channels": ([], [0], "44", None, [1] * 6, [2**70]),
    "image": (0, None, "false"),
    "way": (0, 2**70),
    "text_tokens": (0, 2**70),
    "pair_tokens": (0, None),
    "name_tokens": ("4",),
    "max_answer_tokens": (0, [4]),
    "encoder_train": (None, "most", ["all"], "last"),  # the run has no encoder
    "encoder_rank": (-1, 1.0, 2**70),
    "encoder_layers": (-1, None, 2**70),
    "stage": (3, None, "adapt"),
    "learner": ("ltsm", ["maml"], None, "ridge"),
    "seed": (-1, "0", 1.5),
    "version": (0, None, "1", 1.0, ...),
    "vocabulary": (0, "300", 2**70),
    "known_classes": (None, "phone", [3], {}),
    "serving": (None, [], "all", {"clicks": {}}),
    "serving.sentiment": (None, [], {}, {"method": "maml"}),
    "serving.sentiment.folder": ("x" * 300, "\0", "", "/etc", "a/../../b", None, 3),
    "serving.sentiment.method": ("nope", None, [], {}),
    "serving.sentiment.learning_rate": (
        *(float("nan"), float("inf"), 1e30, -1, "0.1", None, True, ...),
    ),
    "serving.sentiment.steps": (-1, 10**9, 1.5, True, None, ...),
    "more": (1,),
}
EARLIER_NAMES = {
    "width": "model.width",
    "layers": "model.layers",
    "heads": "model.heads",
    "dropout": "model.dropout",
    "channels": "model.channels",
    "image": "model.image",
    "way": "model.way",
    "text_tokens": "text.text",
    "pair_tokens": "text.pair",
    "name_tokens": "text.name",
    "max_answer_tokens": "episodes.longest",
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_value_that_cannot_be_is_one_error_that_names_file_and_field(tmp_path, name, value):
    """Faults: a width that is a text or 1e308 ends in an error of the compiler; a size without
    bounds fills the memory, or a loop has no end; a name of a folder without an end, or with a zero
    byte, is an error of the system; probabilities are NaN, for a number in a file."""
    run_config.write(RUN, tmp_path)
    path = tmp_path / run_config.FILE
    path.write_text(json.dumps(changed(json.loads(path.read_text()), name, value)))
    with pytest.raises(CheckpointError) as error:
        run_config.read(tmp_path)
    said = str(error.value)
    assert said.startswith(f"{path}: {name}") and said.endswith(", or train the run anew")
    assert "\n" not in said and len(said) < 500


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in EARLIER_NAMES for value in (*BAD[name], ...)]
)
def test_a_value_that_cannot_be_is_named_as_it_stands_in_a_folder_of_before(tmp_path, name, value):
    """Fault: the error names a file or a field that the folder does not have."""
    config = changed(EARLIER, EARLIER_NAMES[name], value)
    put(tmp_path, config=config, stage=EARLIER_STAGE)
    with pytest.raises(CheckpointError) as error:
        run_config.read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: {EARLIER_NAMES[name]} ")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config", ("metatrain.inner_rate", "x"), "config.json: metatrain.inner_rate is 'x'; give"),
        ("config", ("adapt.steps", 10**9), "config.json: adapt.steps is 1000000000; give"),
        ("config", ("adapt", 3), "config.json: adapt.steps is missing"),
        ("stage", ("learner", "ltsm"), "stage.json: learner is 'ltsm'; give one of '', 'maml'"),
        ("stage", ("learner", ["maml"]), r"stage.json: learner is \['maml'\]; give one of"),
        ("stage", ("seed", "x"), "stage.json: seed is 'x'; give"),
        ("serving", ("sentiment.rate", -1), "serving.json: sentiment: rate is -1; give a number"),
        ("serving", ("sentiment.arm", 3), "serving.json: sentiment: arm is 3; give one of"),
        ("serving", ("sentiment.arm", ...), "serving.json: sentiment: arm is missing"),
        ("serving", ("sentiment", []), r"serving.json: sentiment is \[\]; give a table"),
        ("serving", ("clicks", {}), "serving.json: it names the task 'clicks'; name cl"),
    ],
)
def test_a_damaged_file_of_before_is_one_error(tmp_path, file, change, message):
    """Fault: KeyError: 'arm', where a file and a field should be named."""
    files = {"config": EARLIER, "stage": EARLIER_STAGE}
    files |= {"serving": EARLIER_SERVING} if file == "serving" else {}
    put(tmp_path, **{**files, file: changed(files[file], *change)})
    with pytest.raises(CheckpointError, match=message):
        run_config.read(tmp_path)


@pytest.mark.parametrize("file", [run_config.FILE, "config.json", "stage.json", "serving.json"])
@pytest.mark.parametrize(
    "content",
    ["[]", "null", "5", '{"model": 3}', '{"text": {}, "model": {}, "x": {}}', "[" * 100_000],
    ids=["list", "null", "number", "half", "hollow", "deep"],
)
def test_what_is_no_run_config_is_one_error(tmp_path, file, content):
    """Fault: KeyError: 'text', or a recursion without an end, where a file should be named."""
    if file == run_config.FILE:
        run_config.write(RUN, tmp_path)
    else:
        put(tmp_path, config=EARLIER, stage=EARLIER_STAGE)
        (tmp_path / "serving.json").write_text(json.dumps(EARLIER_SERVING))
    (tmp_path / file).write_text(content)
    if file == "stage.json" and content.startswith("{"):
        run_config.read(tmp_path)  # what it says of a learner is all that is read of it
        return
    with pytest.raises(CheckpointError, match=file):
        run_config.read(tmp_path)


def test_what_cannot_be_read_is_not_written():
    """Fault: a run trains for an hour, and its folder cannot be loaded."""
    with pytest.raises(FieldError, match="heads is 3; give a divisor of the width, 8"):
        dataclasses.replace(RUN, heads=3)
    with pytest.raises(FieldError, match="layers is 0, without n-grams or an encoder"):
        dataclasses.replace(RUN, layers=0, buckets=0)
    with pytest.raises(FieldError, match="serving.sentiment.steps is -1"):
        dataclasses.replace(RUN, serving={"sentiment": Served(".", "maml", 0.1, -1)})

"""Configuration: what is right comes back typed; what is wrong is one line naming key, value and remedy."""

from dataclasses import FrozenInstanceError, dataclass, field

import pytest

from shared.config import (
    DecodingConfig,
    TrainingConfig,
    UserError,
    check_bounds,
    check_choices,
    differences,
    load_config,
    save_config,
    to_yaml,
)
from tasks.translation.config import TranslationConfig


@dataclass(frozen=True)
class Kitchen:
    kind: str = "warm"
    spoons: int = 3
    heat: float = 0.5
    open: bool = False
    guests: list[str] = field(default_factory=list)

    def check(self):
        check_choices("kitchen", self, kind=("warm", "cold"))
        check_bounds("kitchen", self, low=0, below=1, names=("heat",))


@dataclass(frozen=True)
class House:
    kitchen: Kitchen = field(default_factory=Kitchen)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def check(self):
        if self.kitchen.spoons > self.training.rounds:
            raise UserError(f"kitchen.spoons: {self.kitchen.spoons} exceeds training.rounds={self.training.rounds}")


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "house.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def message_of(path, overrides=(), config_class=House):
    with pytest.raises(UserError) as caught:
        load_config(config_class, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("text", ["", "# nothing\n", "kitchen:\ntraining:\n", "kitchen: {}\n"])
def test_a_file_without_values_gives_the_defaults(write, text):
    assert load_config(House, write(text)) == House()


def test_file_goes_over_defaults_and_overrides_go_over_the_file(write):
    path = write("kitchen: {spoons: 5, heat: 0.25}\ntraining: {learning_rate: 2e-3}\n")
    config = load_config(House, path, ["kitchen.spoons=7", "kitchen.guests=[ann, bob]", "kitchen.open=true"])
    assert config.kitchen == Kitchen(spoons=7, heat=0.25, guests=["ann", "bob"], open=True)
    assert config.training == TrainingConfig(learning_rate=0.002)


def test_dotted_keys_in_a_file_are_those_of_the_command_line(write):
    assert load_config(House, write("kitchen.spoons: 4\n")).kitchen.spoons == 4


def test_the_last_of_two_overrides_counts(write):
    assert load_config(House, write(""), ["kitchen.spoons=1", "kitchen.spoons=2"]).kitchen.spoons == 2


def test_the_result_is_frozen(write):
    with pytest.raises(FrozenInstanceError):
        load_config(House, write("")).kitchen.spoons = 4


def test_whole_numbers_are_numbers_too(write):
    heat = load_config(House, write(""), ["kitchen.heat=0"]).kitchen.heat
    assert heat == 0 and type(heat) is float


@pytest.mark.parametrize("text", ["no", "007", "1e3", "a=b", "a: b", "[x", "", "Straße 5", "x # y"])
def test_text_of_an_override_stays_as_typed(write, text):
    config = load_config(TranslationConfig, write(""), [f"data.dir={text}"])
    assert config.data.dir == text


def test_environment_variables_can_stand_in_paths(write, monkeypatch):
    monkeypatch.setenv("CORPORA", "/somewhere")
    config = load_config(TranslationConfig, write("data: {dir: '${oc.env:CORPORA}/pairs'}"))
    assert config.data.dir == "/somewhere/pairs"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("kitchen.spoon=3", ["kitchen.spoon:", "kitchen.spoons"]),
        ("spoons=3", ["spoons:", "did you mean kitchen.spoons"]),
        ("zzzz=3", ["zzzz:", "kitchen, training"]),
        ("kitchen.spoons.x=3", ["kitchen.spoons.x:", "did you mean kitchen.spoons"]),
        ("kitchen=3", ["kitchen:", "section", "kitchen.kind"]),
        ("kitchen.spoons=many", ["kitchen.spoons:", "'many'", "whole number"]),
        ("kitchen.spoons=1.5", ["kitchen.spoons:", "1.5", "whole number"]),
        ("kitchen.spoons=true", ["kitchen.spoons:", "True", "whole number"]),
        ("kitchen.spoons=", ["kitchen.spoons:", "None", "whole number"]),
        ("kitchen.heat=hot", ["kitchen.heat:", "'hot'", "number"]),
        ("kitchen.heat=true", ["kitchen.heat:", "True", "number"]),
        ("kitchen.heat=.nan", ["kitchen.heat:", "nan", "finite"]),
        ("kitchen.heat=1.0", ["kitchen.heat:", "1.0", "below 1"]),
        ("kitchen.open=2", ["kitchen.open:", "2", "true or false"]),
        ("kitchen.kind=wram", ["kitchen.kind:", "'wram'", "warm, cold", "did you mean warm"]),
        ("kitchen.guests=ann", ["kitchen.guests:", "'ann'", "list"]),
        ("kitchen.guests=[1]", ["kitchen.guests:", "[1]", "list"]),
        ("kitchen.guests=[ann", ["kitchen.guests:", "'[ann'"]),
        ("kitchen.kind=${nothing}", ["kitchen.kind:", "nothing"]),
        ("kitchen.kind=${", ["kitchen.kind:", "${"]),
        ("kitchen.kind=???", ["kitchen.kind:", "???"]),
        ("kitchen.spoons", ["'kitchen.spoons'", "key=value"]),
        ("=3", ["'=3'", "key=value"]),
        ("kitchen.spoons=11", ["kitchen.spoons:", "11", "training.rounds=10"]),
    ],
)
def test_what_is_wrong_in_an_override_is_named_in_one_line(write, override, expected):
    message = message_of(write(""), [override])
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kitchen: {spoon: 3}", ["kitchen.spoon:", "kitchen.spoons"]),
        ("kitchen: 3", ["kitchen:", "section"]),
        ("kitchen: {kind: no}", ["kitchen.kind:", "False", "quotes"]),
        ("kitchen: {spoons: '3'}", ["kitchen.spoons:", "'3'", "whole number"]),
        ("kitchen: {spoons: [3]}", ["kitchen.spoons:", "[3]"]),
        ("kitchen:\n  spoons: 3\n  spoons: 4\n", ["house.yaml:3", "duplicate"]),
        ("kitchen: {\n", ["house.yaml:2", "not valid YAML"]),
        ("kitchen:\n\tspoons: 3\n", ["house.yaml:2", "not valid YAML"]),
        ("- kitchen\n", ["house.yaml", "list"]),
        ("3\n", ["house.yaml"]),
    ],
)
def test_what_is_wrong_in_a_file_is_named_in_one_line(write, text, expected):
    message = message_of(write(text))
    assert all(part in message for part in expected), message


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert "picture.yaml" in message_of(path)


def test_a_folder_is_no_configuration(tmp_path):
    assert str(tmp_path) in message_of(tmp_path)


def test_a_missing_file_names_the_nearest_one(write):
    path = write("")
    assert str(path) in message_of(path.with_name("hous.yaml"))
    assert "no such" in message_of(path.parent / "nowhere" / "house.yaml")


def test_writing_and_reading_gives_an_equal_configuration(tmp_path):
    config = House(Kitchen(kind="cold", spoons=1, guests=["no", "1"]), TrainingConfig(learning_rate=1e-7, seed=4))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(House, tmp_path / "config.yaml") == config
    assert "plateau_patience" in to_yaml(config)  # defaults are written out, too


def test_differences_are_the_keys_that_differ():
    assert differences(House(), House()) == []
    other = House(Kitchen(guests=["ann"], heat=0.1), TrainingConfig(seed=2))
    assert differences(House(), other) == ["kitchen.heat", "kitchen.guests", "training.seed"]


@pytest.mark.parametrize(
    "override",
    [
        "training.precision=float16",
        "training.optimizer=lion",
        "training.schedule=linear",
        "training.rounds=0",
        "training.round_steps=-1",
        "training.learning_rate=0",
        "training.final_learning_rate=1.0",
        "training.average=1",
        "training.plateau_factor=1",
        "training.accumulate_steps=0",
        "decoding.method=best",
        "decoding.beam_size=0",
        "decoding.temperature=-0.5",
        "decoding.top_p=0",
        "decoding.min_p=1",
        "model.cell=rnn",
        "model.encoder_units=0",
        "model.dropout_memory=1",
        "model.decoder_layers=1",
        "vocabulary.unit=words",
        "vocabulary.size=4",
        "data.corpus=tfds:",
        "data.corpus=moon",
        "data.target=en",
        "data.target=fr",
        "data.columns=[en, fr]",
        "data.on_error=ignore",
        "data.batch_size=0",
        "data.train=",
    ],
)
def test_values_that_cannot_work_are_refused_by_key_and_value(write, override):
    key, value = override.split("=")
    message = message_of(write(""), [override], TranslationConfig)
    assert message.startswith("data.target" if value == "[en, fr]" else key)
    assert value.strip("[]") in message


def test_combinations_that_cannot_work_name_the_remedy(write):
    path = write("")
    one_layer = message_of(path, ["model.decoder_layers=1"], TranslationConfig)
    assert "model.attention=none" in one_layer
    assert load_config(TranslationConfig, path, ["model.decoder_layers=1", "model.attention=none"])
    coverage = message_of(path, ["decoding.coverage_penalty=0.1", "model.attention=none"], TranslationConfig)
    assert "decoding.coverage_penalty" in coverage and "choose 0" in coverage
    assert "data.dir=" in message_of(path, ["data.corpus=files"], TranslationConfig)
    assert load_config(TranslationConfig, path, ["data.corpus=files", "data.dir=pairs", "data.target=fr"])
    warm_up = ["training.rounds=2", "training.round_steps=5", "training.warmup_steps=10"]
    assert "training.warmup_steps: 10" in message_of(path, warm_up, TranslationConfig)


def test_the_defaults_pass_their_own_checks():
    for section in (TrainingConfig(), DecodingConfig()):
        assert section.check() is None

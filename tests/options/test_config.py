"""Options go through TOML and the command line unharmed, and whatever is wrong with them is said by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.checkpoints import preflight
from trainer.options.checks import check, read_config, resolve
from trainer.options.config import OPTIONS, Config
from trainer.options.declaration import Option
from trainer.options.problems import ConfigError, Given
from trainer.options.sources import read_arguments, read_toml, read_toml_text
from trainer.options.values import list_items
from trainer.options.writing import to_toml

# --- every value there can be --------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
awkward_texts = st.sampled_from(
    ["\\", "\\x41", "\\u0041", '"', "'", '"""', "'''", "\n", "\r\n", "\t", "\x01", "\x1f", "\x7f", "\x80", "#", "=",
     "[a]", " ",
     "\ufeff", "\u2028", "é", "日本", "🦊", "true", "1.5", "C:\\new\\table", "~", "$HOME", "%s {}", "--x",
     ","]
)  # fmt: skip


def values_of(known: Option) -> st.SearchStrategy[Any]:
    """Every value that an option may have by itself."""
    if known.name in ("resolution", "control_resolution"):
        side = st.integers(1, 1024).map(lambda eighth: str(8 * eighth))
        return st.lists(side, min_size=1, max_size=2).map(",".join)
    if known.kind == "bool":
        return st.booleans()
    if known.kind == "choice":
        return st.sampled_from(known.choices)
    if known.kind == "list":
        return st.lists(texts | awkward_texts, max_size=4).map(tuple)
    if known.kind == "int":
        low = None if known.low is None else int(known.low)
        return st.integers(low, int(known.high) if known.high is not None else 2**63 - 1)
    if known.kind == "float":
        return st.floats(known.low, known.high, allow_nan=False, allow_infinity=False)
    return texts | awkward_texts


def sources_of(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: values_of(OPTIONS[name]) for name in names})


configs = sources_of(list(OPTIONS)).map(lambda values: Config(**values))


def read_back(text: str) -> Config:
    """The config that a text means, whatever its options have to say of one another."""
    return Config(**check(read_toml_text(text, "a.toml")).values)


@given(config=configs)
@example(config=Config(training_comment='"""\\\x7f\u2028', optimizer_args=("a=\\n", "'''", "")))
def test_a_config_comes_back_from_toml_as_it_was(config: Config) -> None:
    assert read_back(to_toml(config)) == config


@given(config=configs)
def test_what_differs_from_the_defaults_is_enough(config: Config) -> None:
    assert read_back(to_toml(config, complete=False)) == config


@given(values=sources_of(list(OPTIONS)))
def test_a_config_comes_back_from_the_command_line_as_it_was(values: dict[str, Any]) -> None:
    arguments = []
    for name, value in values.items():
        if OPTIONS[name].kind == "bool":
            arguments.append(f"--{name}" if value else f"--no-{name}")
        elif OPTIONS[name].kind == "list":
            value = values[name] = tuple(part for part in value if list_items(part) == [part])
            arguments.append(f"--{name}={chr(10).join(value)}")
        else:
            arguments.append(f"--{name}={value!r}" if OPTIONS[name].kind == "float" else f"--{name}={value}")
    checked = check(read_arguments(arguments))
    assert Config(**checked.values) == Config(**values)


def test_zero_and_empty_are_values_and_none_is_left_out() -> None:
    text = to_toml(Config(keep_last_n_checkpoints=0, noise_offset=0.0, clip_skip=None, resume_allow=()))
    source = read_toml_text(text, "a.toml")
    assert source["keep_last_n_checkpoints"].value == 0
    assert source["noise_offset"].value == 0.0
    assert source["resume_allow"].value == []
    assert "clip_skip" not in source


def test_a_config_file_is_read_back_from_the_disk(tmp_path: Path) -> None:
    config = Config(output_name="fox 🦊", optimizer_args=("weight_decay=0.1",))
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert read_config(tmp_path / "config.toml") == config


# --- declared once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_has_help_a_class_for_resumes_and_a_default_that_it_accepts(name: str) -> None:
    known = OPTIONS[name]
    assert known.help.endswith((".", "?"))
    assert known.on_resume in ("locked", "trajectory", "free")
    assert (known.default is None) == known.optional
    if known.default is not None:
        checked = check({name: Given(known.default, "here")})
        assert checked.values == {name: known.default}


def test_every_field_of_the_config_is_an_option() -> None:
    assert {field.name for field in dataclasses.fields(Config)} == set(OPTIONS)


# --- what is wrong is said -----------------------------------------------------------------------------------------


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        resolve(read_toml_text(text, "mine.toml"))
    return [str(problem) for problem in refused.value.problems]


def test_all_that_is_wrong_is_said_at_once_with_file_and_line() -> None:
    text = '[network]\nnetwork_dim = 0\n\n[training]\nlearning_rat = 1e-4\nseed = "x"\nlr_scheduler = "cosin"\n'
    assert problems_of(text) == [
        "network_dim: 0 is below 1 (mine.toml, line 2)",
        "learning_rat: there is no such option; did you mean learning_rate? (mine.toml, line 5)",
        "seed: 'x' is not a number (mine.toml, line 6)",
        f"lr_scheduler: 'cosin' is not one of {', '.join(OPTIONS['lr_scheduler'].choices)}; did you mean cosine? "
        "(mine.toml, line 7)",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("network_dim = 1025", "1025 is above 1024"),
        ("network_dim = 1.5", "1.5 is not a whole number"),
        ("network_dim = true", "True is not a number"),
        ("network_dim = '4'", "'4' is not a number"),
        ("learning_rate = nan", "nan is not a finite number"),
        ("learning_rate = inf", "inf is not a finite number"),
        ("learning_rate = 1e999", "inf is not a finite number"),
        ("flip_aug = 1", "1 is not true or false"),
        ("output_name = 3", "3 is not text"),
        ("optimizer_args = [1]", "[1] is not a list of text values"),
        ("resolution = 7", "each side must be between 8 and 8192 pixels"),
        ("resolution = '1,2,3'", "is not a resolution"),
        ("output_name = '../x'", "is not a plain name"),
        ("output_name = 'a\\u0000b'".replace("'", '"'), "NUL"),
        ("resume_allow = ['network_dim']", "cannot be allowed: a checkpoint fits only one value"),
        ("resume_allow = ['learning_rat']", "did you mean learning_rate?"),
    ],
)
def test_a_wrong_value_is_refused_with_the_reason(line: str, message: str) -> None:
    [problem] = problems_of(line)
    assert message in problem
    assert "mine.toml" in problem


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed: given twice, as 1 and as 2"):
        read_toml_text("seed = 1\n[training]\nseed = 2\n", "a.toml")


def test_what_cannot_be_read_hides_nothing_else_that_is_wrong(tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text("seed = 1\n[training]\nseed = 2\nnetwork_dim = 0\n")
    with pytest.raises(ConfigError) as refused:
        preflight.read_options(preset, ["stray", "--max_train_steps", "0", "--learning_rate"])
    assert [problem.key for problem in refused.value.problems] == [
        "seed", "", "learning_rate", "network_dim", "max_train_steps",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "meant"), [("true", "--flip_aug"), ("False", "--no-flip_aug")])
def test_a_switch_with_a_value_is_refused_with_what_to_write(text: str, meant: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_arguments(["--flip_aug", text, "--seed", "2"])
    [problem] = refused.value.problems
    assert problem.message == f"a switch takes no {text!r}; write {meant}"
    assert refused.value.read["seed"].value == 2


def test_a_missing_file_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "portrait.toml").touch()
    with pytest.raises(ConfigError, match=r"portrat\.toml; did you mean .*portrait\.toml"):
        read_toml(tmp_path / "portrat.toml")


LISTS = {
    "": [],
    "a=1": ["a=1"],
    "a=1 b=2": ["a=1", "b=2"],
    "a=1,b=2": ["a=1", "b=2"],
    "a=1, b=2,": ["a=1", "b=2"],
    "a=1\nb=2": ["a=1", "b=2"],
    "a=1 betas=0.9,0.99": ["a=1", "betas=0.9,0.99"],
    "betas=(0.9, 0.99), a=1": ["betas=(0.9, 0.99)", "a=1"],
}


@pytest.mark.parametrize("text", LISTS)
def test_a_list_means_the_same_on_the_command_line_and_in_toml(text: str) -> None:
    written = read_toml_text(f'optimizer_args = """{text}"""', "a.toml")
    asked = read_arguments([f"--optimizer_args={text}"])
    assert check(written).values == check(asked).values == {"optimizer_args": tuple(LISTS[text])}


def test_a_list_takes_all_values_up_to_the_next_option() -> None:
    arguments = ["--optimizer_args", "a=1", "betas=0.9,0.99", "--seed", "7", "--resume_allow", "seed,vae", "all"]
    assert check(read_arguments(arguments)).values == {
        "optimizer_args": ("a=1", "betas=0.9,0.99"),
        "seed": 7,
        "resume_allow": ("seed", "vae", "all"),
    }
    with pytest.raises(ConfigError, match="'8' is not an option"):
        read_arguments(["--seed", "7", "8"])


def test_a_step_to_resume_from_may_be_written_as_a_number() -> None:
    assert read_back("resume_from_checkpoint = 500").resume_from_checkpoint == "500"
    assert problems_of("resume_from_checkpoint = true") and problems_of("resume_from_checkpoint = 5.5")


def test_the_command_line_wins_over_the_file() -> None:
    config, _ = resolve(read_toml_text("seed = 1\nnetwork_dim = 4", "a.toml"), read_arguments(["--seed", "2"]))
    assert (config.seed, config.network_dim) == (2, 4)


# --- hostile input -------------------------------------------------------------------------------------------------


def check_answered(text: str) -> None:
    """The text is a config, or it is refused: no other end."""
    try:
        resolve(read_toml_text(text, "hostile.toml"))
    except ConfigError as error:
        assert error.problems
        assert "hostile.toml" in str(error)


HOSTILE = {
    "nested lists": "a = " + "[" * 20_000,
    "closed nested lists": "a = " + "[" * 5_000 + "]" * 5_000,
    "nested tables": "a = " + "{a = " * 5_000,
    "a dotted key": ".".join(["a"] * 5_000) + " = 1",
    "dotted tables": "[" + ".".join(["a"] * 5_000) + "]\nb = 1",
    "a number of thousands of digits": "seed = " + "9" * 10_000,
    "a number too large for a float": "learning_rate = 1" + "0" * 400,
    "a hexadecimal number of thousands of digits": "seed = 0x" + "f" * 10_000,
    "another as a rate": "learning_rate = 0x" + "f" * 10_000,
    "another as a text": "output_name = 0x" + "f" * 10_000,
    "another as a switch": "flip_aug = 0x" + "f" * 10_000,
    "another as a choice": "lr_scheduler = 0x" + "f" * 10_000,
    "another as a list": "resume_allow = [0x" + "f" * 10_000 + "]",
    "another as a resolution": "resolution = 0x" + "f" * 10_000,
    "another in a foreign option": "network_module = 0x" + "f" * 10_000,
    "another as its arguments": "network_args = [0x" + "f" * 10_000 + "]",
    "another given twice": "seed = 0x" + "f" * 10_000 + "\n[training]\nseed = 0x" + "e" * 10_000,
    "a negative one": "seed = -1" + "0" * 400,
    "not a number": "seed = nan\nnetwork_dim = inf\nlearning_rate = -inf",
    "dates": "seed = 2000-01-01\noutput_name = 2000-01-01T00:00:00Z\nresume_allow = [00:00:00]",
    "an impossible date": "seed = 2000-13-45",
    "tables for values": "seed = {a = 1}\nresume_allow = [{}]\nresolution = {}\noutput_name = [[]]",
    "lists for values": "resolution = [[]]\nseed = []\nlr_scheduler = []\nfamily = [[['sd']]]\ntext_encoder_lr = [[1]]",
    "empty lists": "resolution = []\ntext_encoder_lr = []\noptimizer_args = []",
    "names of Python": "__class__ = 1\n__init__ = 2\nself = 3\n'' = 4\n\"\\u0000\" = 5",
    "a table named like an option": "[seed]\nseed = 1",
    "no end": "output_name = '''",
    "a byte order mark inside": "\ufeff\ufeffseed = 1",
    "control characters": "seed = 1\x00\x01\x7f",
    "old line ends": "seed = 1\rnetwork_dim = 2",
    "an endless line": "training_comment = '" + "a" * 2_000_000 + "'",
    "many keys": "\n".join(f"key{number} = {number}" for number in range(2_000)),
    "an escape that means no character": 'output_name = "\\ud800"',
    "arguments that are none": "network_args = ['=', '', 'conv_dim', 'conv_dim=', 'conv_dim=x', 'conv_alpha=nan']",
    "a slash": "output_name = '/etc/passwd'",
    "a parent": "output_name = '..'",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_toml_is_refused_or_means_something(kind: str) -> None:
    check_answered(HOSTILE[kind])


toml_values = st.recursive(
    st.booleans() | st.integers() | st.floats() | texts | st.datetimes() | awkward_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(
    values=st.dictionaries(
        st.sampled_from([*OPTIONS, "network_args", "network_module", "save_model_as", "xformers", "reg_data_dir"])
        | texts,
        toml_values,
        max_size=8,
    )
)
def test_any_value_for_any_option_is_accepted_or_refused_by_name(values: dict[str, Any]) -> None:
    try:
        resolve({key: Given(value, "form") for key, value in values.items()})
    except ConfigError as error:
        assert all(problem.message for problem in error.problems)


@given(data=st.data())
def test_a_damaged_preset_is_refused_or_means_something(data: st.DataObject) -> None:
    text = to_toml(Config(output_name="fox", optimizer_args=("weight_decay=0.1",)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 20)))
        text = (
            text[:start]
            + data.draw(texts | awkward_texts | st.sampled_from(["[[", "]]", "}", "0x", "=="]))
            + text[end:]
        )
    check_answered(text)


@given(arguments=st.lists(texts | st.sampled_from([f"--{name}" for name in OPTIONS]) | st.text(max_size=8), max_size=8))
def test_any_command_line_is_accepted_or_refused_by_name(arguments: list[str]) -> None:
    try:
        resolve(read_arguments(arguments))
    except ConfigError as error:
        assert all(problem.message for problem in error.problems)


def test_a_text_that_cannot_be_written_is_refused() -> None:
    """Half a surrogate pair: what Python makes of a byte on the command line that is not UTF-8."""
    for name in ("output_dir", "training_comment", "sample_prompts"):
        [problem] = check({name: Given("a\udc80", "command line")}).problems
        assert problem.key == name
    [problem] = check({"optimizer_args": Given(["a=\udc80"], "command line")}).problems
    assert problem.key == "optimizer_args"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"seed = '\xe9'", b"\x00" * 100, bytes(range(256))])
def test_a_file_that_is_no_text_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"hostile\.toml"):
        read_toml(path)


def test_a_folder_for_a_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)


def test_a_leading_tilde_in_a_path_is_the_home_folder_for_the_training_but_stays_in_a_preset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    text = 'train_data_dir = "~/cats"\noutput_dir = "~"\ncache_dir = "a/~"\nnetwork_weights = "~no such user/x"\n'
    source = read_toml_text(text, "a.toml")
    built = resolve(source)[0]
    assert (built.train_data_dir, built.output_dir) == ("/home/anna/cats", "/home/anna")
    assert (built.cache_dir, built.network_weights) == ("a/~", "~no such user/x")
    assert check(source).values["train_data_dir"] == "~/cats"


def test_an_option_that_only_shapes_one_that_is_off_is_told() -> None:
    given = {"adaptive_noise_scale": 0.02, "conv_alpha": 4.0, "ema_decay": 0.9, "use_ema": True}
    _, notices = resolve({name: Given(value, "") for name, value in given.items()})
    assert sorted(notices) == [
        "adaptive_noise_scale has no effect without noise_offset",
        "conv_alpha has no effect without conv_dim",
    ]


@pytest.mark.parametrize(
    "line",
    [r'train_data_dir = "C:\images"', r'train_data_dir = "C:\Users\me"', r'train_data_dir = "\\server\images"'],
)
def test_a_path_of_windows_that_toml_cannot_read_says_how_to_write_it(line: str) -> None:
    with pytest.raises(ConfigError, match=r"is not valid TOML: .* write C:/images, 'C:\\images' in single quotes"):
        read_toml_text(line, "mine.toml")


def test_a_path_of_windows_that_toml_reads_as_something_else_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        read_toml_text('seed = 1\ntrain_data_dir = "C:\\new\\table"', "mine.toml")
    (problem,) = refused.value.problems
    assert problem.key == "train_data_dir" and "in TOML \\ begins a special character" in str(problem)


@pytest.mark.parametrize("text", ["'C:\\new'", '"C:\\\\new"', '"C:/new"'])
def test_paths_with_drive_letters_are_read_and_written_as_they_are(text: str) -> None:
    value = read_toml_text(f"train_data_dir = {text}", "mine.toml")["train_data_dir"].value
    assert value.replace("/", "\\") == "C:\\new"
    written = to_toml(Config(train_data_dir=value))
    assert read_toml_text(written, "mine.toml")["train_data_dir"].value == value


def test_a_name_too_long_for_the_files_of_a_run_is_refused_before_anything_is_saved() -> None:
    with pytest.raises(ConfigError, match=r"output_name: .* is longer than 200 bytes"):
        resolve({"output_name": Given("x" * 230, "")})

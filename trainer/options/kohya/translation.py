"""What a preset of kohya_ss or sd-scripts becomes here, key by key; nothing is left out in silence. No torch here."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.models.families import TABLE
from trainer.models.families.facts import TRAINS_ENCODERS
from trainer.options import checks, network_kinds, sd_scripts, writing
from trainer.options.config import OPTIONS, arguments_of
from trainer.options.kohya import reading, tables
from trainer.options.kohya.reading import Form
from trainer.options.kohya.tables import FAMILIES, KINDS, TRAINERS, NetworkKind
from trainer.options.optimizer_table import optimizer_of
from trainer.options.problems import Checked, ConfigError, Given, Problem, nearest
from trainer.options.sections.samples import SAMPLERS
from trainer.options.sources import from_text
from trainer.options.values import as_ours, value_problem

Outcome = Literal["used", "changed", "default", "no effect", "refused"]
HIDDEN = "(not shown)"
HUB_KINDS = {"model": "", "dataset": "datasets/"}  # of repositories: how the address of one begins
WHOLE_MODEL = ("finetune", "dreambooth")  # the trainers of it


@dataclass(frozen=True)
class Fate:
    """What becomes of a key. `value`: as it was given; `default`: as kohya_ss or sd-scripts fills it in."""

    key: str
    value: Any
    outcome: Outcome
    message: str

    @property
    def matters(self) -> bool:
        """Whether the key says anything: it is neither empty nor off."""
        return self.value not in (None, False, 0, "", "0") and self.value != []

    def __str__(self) -> str:
        return f"{self.key} = {_shown(self.value)}: {self.outcome}: {self.message}"


@dataclass(frozen=True)
class Imported:
    """A preset as it is here. `refused`: why it cannot be one of ours at all; then `checked` is of no use."""

    form: Form
    trainer: str
    family: str
    fates: tuple[Fate, ...]
    remarks: tuple[str, ...]  # on what is done otherwise here although every key is used
    checked: Checked
    refused: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{TRAINERS[self.trainer].title} of {FAMILIES[self.family].title}"

    @property
    def refusals(self) -> tuple[str, ...]:
        """Every reason why nothing is imported."""
        return (*self.refused, *map(str, self.checked.problems))

    def lines(self) -> list[str]:
        """For people: what it is, what is refused, then every key."""
        source = "kohya_ss" if self.form == "page" else "sd-scripts"
        groups: tuple[Outcome, ...] = ("refused", "changed", "default", "used", "no effect")
        return [
            f"A preset of {source}: {self.title}.",
            *(f"Refused: {reason}" for reason in self.refusals),
            *(str(fate) for group in groups for fate in self.fates if fate.outcome == group),
            *(f"Otherwise here: {remark}" for remark in self.remarks),
        ]


def read(
    text: str, name: str, leave_out: Iterable[str] = (), seed: Callable[[], int] = lambda: secrets.randbelow(2**32)
) -> Imported:
    """What a file of kohya_ss (JSON) or sd-scripts (TOML) becomes. Raises ConfigError when it cannot be read.

    `leave_out`: keys that are to be ignored although they would be refused; `seed`: draws one where none is given.
    """
    form, given = reading.read(text, name)
    return _Translation(form, given, frozenset(leave_out), seed).result()


# --- what kind of training -----------------------------------------------------------------------------------------


def trainer_of(given: Mapping[str, Given]) -> str:
    """The trainer that a preset was made for: the first that has a key of its own in it."""
    signs = (name for name, keys in tables.TRAINER_KEYS.items() if keys & given.keys())
    return next(signs, "dreambooth")


def family_of(form: Form, given: Mapping[str, Given]) -> str:
    """The architecture that a preset was made for."""

    def value(key: str) -> Any:
        return given[key].value if key in given else None

    switches = (family for key, family in tables.FAMILY_SWITCHES.items() if value(key) is True)
    by_module = tables.FAMILY_MODULES.get(str(value("network_module")))
    by_sign = None
    if form == "trainer":
        by_sign = next((family for key, family in tables.TOML_SIGNS.items() if value(key)), None)
    by_kind = "flux" if value("LoRA_type") == "Flux1" else None
    family = next(switches, None) or by_module or by_kind or by_sign or "sd"
    return "chroma" if family == "flux" and value("model_type") == "chroma" else family


def kind_of(given: Mapping[str, Given]) -> str | None:
    """The LoRA_type of the page that a preset asks for; None where there is none of that name."""
    if "LoRA_type" in given:
        name = str(given["LoRA_type"].value or "Standard")
        return name if name in KINDS else None
    module = str(given["network_module"].value) if "network_module" in given else "networks.lora"
    if module == network_kinds.LYCORIS:
        algo = _network_arguments(given).get("algo", "lora")
        return tables.ALGOS.get(str(algo))
    same = (name for name, kind in KINDS.items() if kind.module == (module or "networks.lora"))
    return next(same, None)


def _network_arguments(given: Mapping[str, Given]) -> dict[str, Any]:
    items = given["network_args"].value if "network_args" in given else ()
    if isinstance(items, str):
        items = items.replace('"', "").split()
    return arguments_of(map(str, items) if isinstance(items, list) else ())


def _missing(options: Mapping[str, Any]) -> bool:
    """Whether an option that something needs is not there, or does not take the value it needs."""
    return any(
        name not in OPTIONS or (OPTIONS[name].kind == "choice" and value not in OPTIONS[name].choices)
        for name, value in options.items()
    )


# --- key by key ----------------------------------------------------------------------------------------------------


@dataclass
class _Translation:
    """One file on its way."""

    form: Form
    given: dict[str, Given]
    leave_out: frozenset[str]
    seed: Callable[[], int]
    options: dict[str, Any] = field(default_factory=dict)
    fates: list[Fate] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)  # of single keys
    remarks: list[str] = field(default_factory=list)

    def result(self) -> Imported:
        self.trainer = trainer_of(self.given)
        self.family = family_of(self.form, self.given)
        self.kind_name = kind_of(self.given)
        self.kind: NetworkKind | None = KINDS.get(self.kind_name or "")
        self._refuse_as_a_whole()
        self.left = self._by_their_names()
        self._rename()
        for step in (
            self._what_it_is, self._optimizer, self._rates, self._length, self._schedule, self._noise, self._network,
            self._pictures, self._hub, self._the_rest,
        ):  # fmt: skip
            step()
        checked = checks.check({name: Given(value, "") for name, value in self.options.items()})
        named = {problem.key for problem in self.problems}
        others = [problem for problem in checked.problems if problem.key not in named]
        checked = dataclasses.replace(checked, problems=self.problems + others)
        fates = tuple(sorted(self.fates, key=lambda fate: list(self._order).index(fate.key)))
        return Imported(self.form, self.trainer, self.family, fates, tuple(self.remarks), checked, tuple(self.refused))

    # --- before the keys -------------------------------------------------------------------------------------------

    def _refuse_as_a_whole(self) -> None:
        trainer, family = TRAINERS[self.trainer], FAMILIES[self.family]
        if not self.given:
            self.refused.append("there is no key in it")
        signs = sorted(tables.TRAINER_KEYS.get(self.trainer, frozenset()) & self.given.keys())
        if not trainer.possible or _missing(trainer.options):
            text = f" ({', '.join(signs[:4])})" if signs else " (it has no key of a LoRA's network)"
            self.refused.append(f"this is the preset of {trainer.title}{text}, which cannot be trained here yet")
        if not family.possible or _missing(family.options):
            self.refused.append(f"this is a preset for {family.title}, which cannot be trained here yet")
        if self.trainer != "lora":
            return
        if self.kind is None:
            named = self.given.get("LoRA_type") or self.given.get("network_module")
            self.refused.append(f"there is no network {named.value if named else ''!r}")
        elif not self.kind.possible or _missing(self.kind.options):
            self.refused.append(f"it trains a network of the kind {self.kind.title}, which is not there yet")

    def _by_their_names(self) -> dict[str, Given]:
        """Every key, with kohya_ss' or sd-scripts' defaults for those left out."""
        defaults = tables.PAGE_DEFAULTS if self.form == "page" else tables.TRAINER_DEFAULTS
        given = {tables.RENAMED.get(key, key) for key in self.given}
        if self.trainer != "lora":
            given |= tables.TRAINER_KEYS["lora"] | tables.ALL_ARGUMENTS
        if self.trainer in WHOLE_MODEL and self.form == "page":
            defaults = defaults | {"learning_rate": tables.WHOLE_MODEL_RATE}
        filled = {
            key: Given(value, "default") for key, value in defaults.items() if tables.RENAMED.get(key, key) not in given
        }
        self._order = dict.fromkeys([*self.given, *filled])
        return {**self.given, **filled}

    def _rename(self) -> None:
        """Let each key stand under the trainer's name; what was given in two ways counts as given last."""
        self.written: dict[str, str] = {}  # the trainer's name -> the key as it was written
        for key in list(self.left):
            name = tables.RENAMED.get(key, key)
            if key in self.leave_out or name in self.leave_out:
                self._note(key, self.left.pop(key), "no effect", "left out, as asked for")
                continue
            if name != key:
                if name in self.left and name in self.given:
                    self._note(key, self.left.pop(key), "no effect", f"{name} is given as well")
                    continue
                self.left[name] = self.left.pop(key)
            self.written[name] = key

    # --- notes -----------------------------------------------------------------------------------------------------

    def _note(self, key: str, given: Given, outcome: Outcome, message: str) -> None:
        value = HIDDEN if key in tables.SECRETS and given.value else given.value
        self.fates.append(Fate(key, value, outcome, message))

    def _take(self, name: str) -> Given | None:
        """A key that has not been dealt with yet, which it then is."""
        return self.left.pop(name, None)

    def _value(self, name: str, otherwise: Any = None) -> Any:
        """A key's value, "" and null being none; the key is still to be dealt with."""
        given = self.left.get(name)
        return otherwise if given is None or given.value in ("", None) else given.value

    def _number(self, name: str, otherwise: float = 0.0) -> float:
        """A key's number; the other one where it holds none."""
        value = self._value(name, otherwise)
        try:
            return float(value)
        except (TypeError, ValueError):
            return otherwise

    def _say(self, name: str, outcome: Outcome, message: str) -> None:
        given = self._take(name)
        if given is None:
            return
        if given.where == "default":
            if outcome not in ("used", "changed"):
                return  # a default that does nothing is not worth a line
            outcome = "default"
            message = f"left out, {'kohya_ss' if self.form == 'page' else 'sd-scripts'} takes this: {message}"
        self._note(self.written.get(name, name), given, outcome, message)

    def _set(self, option: str, value: Any, name: str | None = None, why: str = "") -> None:
        """Give an option of ours its value. `name`: the key that says so; `why`: the value is not the given one."""
        name = option if name is None else name
        given = self.left.get(name)
        if given is not None and given.where == "default" and value == OPTIONS[option].default and not why:
            self._take(name)
            return
        self.options[option] = value
        same = given is None or (_as_given(option, given.value) == value and not why)
        text = f"{option} = {_shown(value)}" if name != option or not same or given is None else "as it is"
        self._say(name, "changed" if why else "used", f"{text}{f': {why}' if why else ''}")

    def _plain(self, name: str, option: str = "") -> None:
        """An option of the same meaning, called the same here as a rule."""
        option = option or name
        value = _as_given(option, self.left[name].value)
        if value is None:
            self._say(name, "no effect", "empty: not given")
            return
        checked, wrong = value_problem(OPTIONS[option], value)
        if wrong:
            self._refuse(name, wrong)
        else:
            self._set(option, checked, name=name)

    def _refuse(self, name: str, why: str) -> None:
        self.problems.append(Problem(self.written.get(name, name), why))
        self._say(name, "refused", why)

    # --- what it is ------------------------------------------------------------------------------------------------

    def _what_it_is(self) -> None:
        family = FAMILIES[self.family]
        outcome: Outcome = "refused" if _missing(family.options) else "used"
        for key, means in tables.FAMILY_SWITCHES.items():
            if key in self.left:
                on = self._value(key) is True
                self._say(
                    key, outcome if on and means == self.family else "no effect", f"{family.title}" if on else "off"
                )
        if not _missing(family.options):
            self.options |= {name: value for name, value in family.options.items() if value != OPTIONS[name].default}
        whole = self.trainer in WHOLE_MODEL
        if whole:
            self._whole_model()
        if self.trainer == "textual_inversion":
            self._new_word()
        for trainer, keys in tables.TRAINER_KEYS.items():
            for key in sorted(keys & self.left.keys() - tables.TRAINER_KEYS["lora"]):
                if (trainer in WHOLE_MODEL and whole) or trainer == self.trainer == "textual_inversion":
                    continue  # dealt with like any other
                belongs = f"it belongs to {TRAINERS[trainer].title}"
                self._say(key, "refused" if trainer == self.trainer else "no effect", belongs)

    def _hub(self) -> None:
        """Where sd-scripts uploads to; a mirror copies checkpoints and model files there, in the background."""
        repository = str(self._value("huggingface_repo_id") or "").strip()
        if not repository:
            return
        kind = str(self._value("huggingface_repo_type") or "model")
        if kind not in HUB_KINDS:
            self._refuse("huggingface_repo_type", f"{kind!r} is no kind that can be mirrored: model or dataset")
            return
        inner = str(self._value("huggingface_path_in_repo") or "").strip("/ ")
        address = f"hf://{HUB_KINDS[kind]}{repository}{f'/{inner}' if inner else ''}"
        states = self._value("save_state_to_huggingface") is True
        self._set(
            "checkpoint_mirror", address, name="huggingface_repo_id",
            why="" if states else "checkpoints are copied there as well, not model files alone",
        )  # fmt: skip
        for name in ("huggingface_repo_type", "huggingface_path_in_repo", "save_state_to_huggingface"):
            self._say(name, "used", "in checkpoint_mirror")
        self._say("huggingface_repo_visibility", "no effect", "the repository has to be there")
        self._say("async_upload", "no effect", "it is always copied in the background")

    def _new_word(self) -> None:
        """What a textual inversion learns."""
        self.options["training_kind"] = "textual_inversion"
        if "num_vectors" in self.left:
            self._plain("num_vectors", "num_vectors_per_token")
        template = str(self._value("template", "caption"))
        if template == "caption":
            self._say("template", "no effect", "captions are used as they are")
        else:
            self._refuse("template", sd_scripts.NOT_SUPPORTED["use_object_template"])

    def _whole_model(self) -> None:
        """What a fine-tune or a DreamBooth training trains, and at which rates."""
        self.options["training_kind"] = "finetune"
        for name, said in tables.PREPARATION.items():
            self._say(name, "no effect", said)
        if "image_folder" in self.left:
            self._set("train_data_dir", self._value("image_folder", ""), name="image_folder")
        if self.trainer == "finetune" and self.form == "page":
            self.options["enable_bucket"] = True  # which is all that its pictures are ever sorted into
        stop = self._number("stop_text_encoder_training")
        trained = self._text_encoders(stop)
        if trained:
            self.options["train_text_encoder"] = True
        said = "the text encoders are trained" if trained else "the text encoders are not trained"
        self._say("train_text_encoder", "used", said)
        if stop > 0 and trained:
            share = stop / 100 if self.form == "page" else stop
            if share < 1 or self.form == "trainer":
                self._set("stop_text_encoder_training", share)
            else:
                self._say("stop_text_encoder_training", "no effect", "the text encoders are trained to the end")
        else:
            self._say("stop_text_encoder_training", "used" if stop < 0 else "no effect", said if stop < 0 else "off")
        value = str(self._value("save_model_as", ""))
        if value.startswith("diffusers"):
            self._set("save_model_as", "diffusers", why="" if value == "diffusers" else "its weights are safetensors")
        elif value not in ("safetensors", ""):
            self._set("save_model_as", "safetensors", why="model files are always safetensors")

    def _text_encoders(self, stop: float) -> bool:
        """Whether the text encoders are trained with the whole model; takes their rates over."""
        facts = TABLE.get(str(FAMILIES[self.family].options.get("family")))
        given = [name for name in tables.TEXT_ENCODER_RATES if name in self.left]
        used = given and facts and TRAINS_ENCODERS in facts.traits
        rates = {name: self._number(name) for name in given} if used else {}
        wanted = self._value("train_text_encoder")
        trained = wanted is True if wanted is not None else any(rates.values())
        if self.trainer == "dreambooth" and self.family == "sd" and not given:
            trained = True  # sd-scripts' train_db.py always does
        trained = bool(trained and stop >= 0 and facts and TRAINS_ENCODERS in facts.traits)
        for name in given:
            if trained:
                self._set(sd_scripts.RENAMED[name], rates[name], name=name)
            else:
                self._say(name, "no effect", "the text encoders are not trained")
        return trained

    # --- optimizer, rates, length, schedule ------------------------------------------------------------------------

    def _optimizer(self) -> None:
        named = str(self._value("optimizer_type", "AdamW"))
        for switch, meant in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
            if switch in self.left:
                on = (
                    self._value(switch) is True and "optimizer_type" not in self.given and "optimizer" not in self.given
                )
                named = meant if on else named
                self._say(switch, "used" if on else "no effect", f"optimizer_type = {meant}" if on else "off")
        ours = as_ours(OPTIONS["optimizer_type"], tables.OPTIMIZERS.get(named.lower(), named))
        _, wrong = value_problem(OPTIONS["optimizer_type"], ours)
        if wrong:
            self._refuse("optimizer_type", wrong)
        elif "optimizer_type" in self.left:
            why = f"sd-scripts' {named} is this class" if named.lower() in tables.OPTIMIZERS else ""
            self._set("optimizer_type", ours, why=why)
        else:
            self.options["optimizer_type"] = ours
        arguments = self._items("optimizer_args")
        why = ""
        if ours == "Adafactor":
            arguments, why = self._adafactor(arguments)
        if arguments:
            self._set("optimizer_args", arguments, why=why if "optimizer_args" in self.left else "")
            if why and not any(fate.key == "optimizer_args" for fate in self.fates):
                self._order.setdefault("optimizer_args")
                self.fates.append(Fate("optimizer_args", None, "default", f"{' '.join(arguments)}: {why}"))
        else:
            self._say("optimizer_args", "no effect", "empty: not given")

    def _adafactor(self, items: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
        """Adafactor's arguments with the defaults that sd-scripts gives them, and what is to be said of that."""
        given = arguments_of(items)
        relative = given.get("relative_step", True) or given.get("warmup_init", False)
        wanted = {"relative_step": bool(relative), "scale_parameter": given.get("scale_parameter", True)}
        wanted["warmup_init"] = bool(given.get("warmup_init", False))
        if relative:
            self.options["lr_scheduler"] = "adafactor"
        changed = any(given.get(name) != value for name, value in wanted.items())
        others = {name: value for name, value in given.items() if name not in wanted}
        items = tuple(f"{name}={value}" for name, value in {**wanted, **others}.items())
        return items, "sd-scripts' defaults of Adafactor, which are not those of here" if changed else ""

    def _items(self, name: str) -> tuple[str, ...]:
        """A list of texts, as kohya_ss splits it."""
        value = self._value(name) or ""
        if not isinstance(value, str | list):
            self._refuse(name, f"{value!r} is not a list of texts")
            return ()
        items = value.replace('"', "").split() if isinstance(value, str) else map(str, value)
        return tuple(item for item in items if item)

    def _rates(self) -> None:
        if self.trainer != "lora":
            return
        text = self.left.get("text_encoder_lr")
        if text is not None and isinstance(text.value, list):  # one rate for each text encoder
            self.left["text_encoder_lr"] = dataclasses.replace(
                text, value=as_ours(OPTIONS["text_encoder_lr"], text.value)
            )
        if self.form == "trainer":
            for name in ("learning_rate", "unet_lr", "text_encoder_lr"):
                if name in self.left:
                    self._plain(name)
            return
        unet, text_encoder = self._number("unet_lr"), self._number("text_encoder_lr")
        if not (unet or text_encoder):
            for name in ("unet_lr", "text_encoder_lr"):
                self._say(name, "no effect", "both are 0: kohya_ss takes learning_rate for both")
            self._set("learning_rate", self._number("learning_rate"))
            return
        for name, rate, other, only in (
            ("unet_lr", unet, "text encoder", "network_train_text_encoder_only"),
            ("text_encoder_lr", text_encoder, "U-Net", "network_train_unet_only"),
        ):
            if rate:
                self._set(name, rate)
            else:
                self.options[only] = True
                self._say(name, "used", f"0: only the {other} is trained ({only} = true)")
        self._say("learning_rate", "no effect", "unet_lr and text_encoder_lr take its place")
        self.options["learning_rate"] = unet or text_encoder

    def _length(self) -> None:
        epochs, max_epochs = int(self._number("epoch")), int(self._number("max_train_epochs"))
        self.epochs = epochs
        steps = int(self._number("max_train_steps", 1600 if self.form == "trainer" else 0))
        self.total: int | None = None
        if max_epochs:
            self._set("max_train_epochs", max_epochs)
            self._say("max_train_steps", "no effect", "max_train_epochs takes its place")
            self._say("epoch", "no effect", "max_train_epochs takes its place")
        elif steps:
            self.total = steps
            self._set("max_train_steps", steps)
            self._say("max_train_epochs", "no effect", "not given")
            self._say("epoch", "no effect", f"max_train_steps ({steps}) takes its place")
        else:
            self._say("max_train_steps", "no effect", "not given")
            self._say("max_train_epochs", "no effect", "not given")
            self._set("max_train_epochs", max(1, epochs), name="epoch")
        if self.total is None:
            self.remarks.append(
                "an epoch has as many steps as the samples fill; sd-scripts adds one for what is left over in each "
                "bucket, so its epochs are longer"
            )

    def _schedule(self) -> None:
        if self.options.get("lr_scheduler") == "adafactor":
            why = "Adafactor's relative_step is the rate itself, whatever is said here"
            self._say("lr_scheduler", "changed", f"lr_scheduler = 'adafactor': {why}")
        elif self._averages():
            self._say("lr_scheduler", "no effect", "the optimizer needs none, and sd-scripts gives it none")
        for name in ("lr_scheduler", "lr_scheduler_type"):
            if name in self.left:
                self._plain(name)
        items = self._items("lr_scheduler_args")
        if items:
            self._set("lr_scheduler_args", items)
        else:
            self._say("lr_scheduler_args", "no effect", "empty: not given")
        if "lr_scheduler_num_cycles" in self.left:
            empty = self.left["lr_scheduler_num_cycles"].value == ""
            cycles = max(
                1, int(self._number("epoch" if empty and "epoch" in self.given else "lr_scheduler_num_cycles", 1))
            )
            why = "empty: kohya_ss takes the number of epochs" if empty and cycles > 1 else ""
            self._set("lr_scheduler_num_cycles", cycles, why=why)
        self._warmup()

    def _averages(self) -> bool:
        return optimizer_of(str(self.options.get("optimizer_type", ""))).averages

    def _warmup(self) -> None:
        steps, percent = self._number("lr_warmup_steps"), self._number("lr_warmup")
        curve = self.options.get("lr_scheduler", "constant")
        curve = "" if self.options.get("lr_scheduler_type") else curve
        if curve in ("", "constant", "adafactor", "piecewise_constant") or self._averages():
            for name in ("lr_warmup_steps", "lr_warmup"):
                refuses = "; with a warm-up, sd-scripts would not start" if curve == "constant" else ""
                text = f"this learning rate curve does not warm up{refuses}" if self._number(name) else "none"
                self._say(name, "no effect", text)
            return
        if steps:
            whole = self.form == "page" or isinstance(self._value("lr_warmup_steps"), int)
            why = "" if whole or steps < 1 else "steps here; sd-scripts would take it for that many times the whole run"
            self._set("lr_warmup_steps", steps, why=why)
            self._say("lr_warmup", "no effect", "lr_warmup_steps takes its place")
            return
        self._say("lr_warmup_steps", "no effect", "0: lr_warmup counts" if percent else "none")
        if "lr_warmup" not in self.left:
            return
        if not percent:
            self._say("lr_warmup", "no effect", "none")
        elif self.total:
            self._set("lr_warmup_steps", float(round(percent * self.total / 100)), name="lr_warmup")
        else:
            self._set("lr_warmup_steps", min(0.999, percent / 100), name="lr_warmup")

    # --- noise, network, pictures ----------------------------------------------------------------------------------

    def _noise(self) -> None:
        kind = str(self._value("noise_offset_type", "Original")) if self.form == "page" else ""
        of = {
            "Original": ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength"),
            "Multires": ("multires_noise_iterations", "multires_noise_discount"),
        }
        self._say("noise_offset_type", "used", f"chooses {' and '.join(of.get(kind, ()))}" if kind else "off")
        for chosen, names in of.items():
            for name in names if kind and chosen != kind else ():
                self._say(name, "no effect", f"noise_offset_type is {kind}")
        main, dependent = "multires_noise_iterations", "multires_noise_discount"
        if dependent in self.left and not self._number(main):
            self._say(dependent, "no effect", f"{main} is 0")
        schedule = self._value("huber_schedule", "snr")
        if schedule == "snr" and self._number("huber_scale", 1.0) != 1.0:
            self._set("huber_scale", 1.0, why="sd-scripts does not use it with huber_schedule = snr")
        if self._value("zero_terminal_snr") is True:
            self.remarks.append(
                "under zero_terminal_snr, losses are weighted by the rescaled schedule's signal-to-noise ratio; "
                "sd-scripts takes the original one (1 to 2 % apart)"
            )
        for name in ("noise_offset_random_strength", "ip_noise_gamma_random_strength"):
            if self._value(name) is True and name in self.left:
                self.remarks.append(f"{name} draws a strength for each image; sd-scripts one for a whole batch")

    def _network(self) -> None:
        if self.trainer != "lora":
            return
        named = "LoRA_type" if "LoRA_type" in self.left else "network_module"
        title = self.kind.title if self.kind else "unknown"
        whole = self.kind is None or not self.kind.possible or _missing(self.kind.options)
        self._say(named, "refused" if whole else "used", title)
        self._say("network_module", "no effect", "LoRA_type takes its place")
        if self.kind and not whole:
            self.options |= {name: value for name, value in self.kind.options.items() if value != OPTIONS[name].default}
            if self.kind.module == network_kinds.LYCORIS:
                self.options["network_preset"] = network_kinds.FULL
        self._network_args()
        wanted = self.kind.arguments if self.kind else ()
        for name in sorted(tables.ALL_ARGUMENTS & self.left.keys()):
            value = self._value(name)
            if name not in wanted:
                self._say(name, "no effect", f"{title} has no such argument")
            else:
                self._network_argument(name, value)

    def _network_args(self) -> None:
        """Take network_args apart: each argument is then a key like those of the page."""
        given = self.left.get("network_args")
        if given is None:
            return
        if given.value and not isinstance(given.value, str | list):
            self._refuse("network_args", f"{given.value!r} is not a list of texts")
            return
        for name, value in _network_arguments({"network_args": given}).items():
            if name in ("algo",):
                continue
            page = next((key for key, other in tables.ARGUMENT_NAMES.items() if other == name), name)
            if page in tables.ALL_ARGUMENTS and page not in self.given:
                self.left[page] = Given(value, f"network_args of {given.where}")
                self.written[page] = f"network_args: {name}"
                self._order.setdefault(f"network_args: {name}")
            elif page not in tables.ALL_ARGUMENTS:
                self.problems.append(Problem("network_args", f"there is no argument {name!r} of a network"))
        self._say("network_args", "used" if given.value else "no effect", "each argument has its own line")

    def _network_argument(self, name: str, value: Any) -> None:
        """An argument of a kind of network that has it."""
        off = value in (None, False, 0, "", "0", "False", []) or (
            value in tables.OFF_ARGUMENTS.get(_trainer_name(name), ())
        )
        ours = network_kinds.ARGUMENTS.get(_trainer_name(name), name)
        if off:
            self._say(name, "no effect", "off")
        elif name in network_kinds.SWITCHES:
            wrong = network_kinds.with_switch(self.options, name)
            if wrong:
                self._refuse(name, wrong[0])
            else:
                self._say(name, "used", f"network_kind = {self.options['network_kind']!r}")
        elif name in network_kinds.NO_EFFECT:
            self._say(name, "no effect", "it decides how the same is computed")
        elif name == "LyCORIS_preset":
            self._layers(name, str(value))
        elif ours in OPTIONS:
            self._plain(name, ours)
        else:
            self._refuse(name, "not there yet; leave it out to train without")

    def _layers(self, name: str, preset: str) -> None:
        """LyCORIS' preset of layers."""
        chosen = network_kinds.UNET_ONLY.get(preset, preset)
        if chosen not in network_kinds.NETWORK_PRESETS:
            self._refuse(name, f"there is no {preset!r} here; there are {', '.join(network_kinds.NETWORK_PRESETS[1:])}")
            return
        why = ""
        if preset in network_kinds.UNET_ONLY:
            self.options["network_train_unet_only"] = True
            why = "with network_train_unet_only = true"
        self._set("network_preset", chosen, name=name, why=why)

    def _pictures(self) -> None:
        self.options["bucket_rules"] = "sd-scripts"
        self.remarks.append("pictures are scaled and cut as sd-scripts does it (bucket_rules = sd-scripts)")
        if self._value("resize_interpolation") is None:
            self._say("resize_interpolation", "no effect", "empty: not given")
            self.options["resize_interpolation"] = "automatic"
            self.remarks.append("area down, lanczos up, as sd-scripts scales (resize_interpolation = automatic)")
        step = tables.BUCKET_STEPS.get(self.family, 32)
        given = int(self._number("bucket_reso_steps", 64))
        if given % step or not given:
            why = f"sd-scripts refuses {given}, which is no multiple of {step}"
            self._set("bucket_reso_steps", step, why=why)
        if "vae_batch_size" in self.left and not self._number("vae_batch_size"):
            self._say("vae_batch_size", "no effect", "0: one at a time")
        if "clip_skip" in self.left and self._number("clip_skip") <= 1:
            self._say("clip_skip", "no effect", "the last layer, as without it")
        if self._value("seed") in (None, 0, "0", -1):
            seed = self.seed()
            given_seed = "seed" in self.given
            self._set("seed", seed, why=f"{'none is' if given_seed else 'none was'} given, so one was drawn, for good")
            self.options["seed"] = seed
        for name in ("min_timestep", "max_timestep"):
            if name in self.left and not self._number(name):
                self._say(name, "no effect", "0: not given")

    # --- all others ------------------------------------------------------------------------------------------------

    def _the_rest(self) -> None:
        special = {
            "sdxl_no_half_vae": ("sdxl", "no_half_vae"),
            "sdxl_cache_text_encoder_outputs": ("sdxl", "cache_text_encoder_outputs"),
            "flux1_cache_text_encoder_outputs": ("flux", "cache_text_encoder_outputs"),
            "flux1_cache_text_encoder_outputs_to_disk": ("flux", "cache_text_encoder_outputs_to_disk"),
        }
        for key, (family, option) in special.items():
            if key in self.left and family == self.family:
                if self._value(key) is True:
                    self._set(option, True, name=key)
                else:
                    self._say(key, "no effect", "off")
        for name in list(self.left):
            if name in self.left:
                self._other(name)

    def _other(self, name: str) -> None:
        value = self.left[name].value
        off = value in (None, False, 0, "", "0") or value == []
        families = [family for family, keys in tables.FAMILY_KEYS.items() if name in keys]
        by_prefix = next((means for start, means in tables.FAMILY_PREFIXES.items() if name.startswith(start)), None)
        families += [by_prefix] if by_prefix and by_prefix not in families else []
        if name in tables.SECRETS:
            text = "a secret does not belong in a preset: set it in the environment" if value else "empty: not given"
            self._say(name, "no effect", text)
        elif name in ("save_state", "save_state_on_train_end"):
            self._say(name, "no effect", "every save writes a checkpoint here, the last step too")
        elif name == "save_model_as" and (value not in ("safetensors", "") or self.trainer not in WHOLE_MODEL):
            changed = value not in ("safetensors", "")
            self._say(name, "changed" if changed else "no effect", "model files are always safetensors")
        elif name == "stop_text_encoder_training" and not off and self.trainer == "lora" and self.form == "page":
            self._say(name, "no effect", "kohya_ss does not pass it on when it trains a LoRA")
        elif name in tables.IGNORED_BY_FLOW and self.family not in tables.OF_NOISE_SCHEDULES:
            text = f"sd-scripts does not use it with {FAMILIES[self.family].title}"
            self._say(name, "no effect", "off" if off else text)
        elif name == "additional_parameters":
            self._say(name, "used" if str(value).strip() else "no effect", "each has its own line" if value else "none")
        elif name == "sample_sampler" and not self._takes_sampler(value):
            self._say(name, "no effect", f"sd-scripts samples {FAMILIES[self.family].title} with a sampler of its own")
        elif name in OPTIONS and not self._of_another(name, families):
            self._plain(name)
        elif families and self.family not in families:
            titles = " or ".join(FAMILIES[family].title for family in dict.fromkeys(families))
            self._say(name, "no effect", f"it belongs to {titles}")
        elif name in tables.LAUNCH:
            self._say(name, "no effect", "how many processes there are is said to accelerate launch")
        elif name in tables.OF_THE_PAGE:
            self._say(name, "no effect", "it belongs to kohya_ss' own page")
        elif name in sd_scripts.RENAMED and not off:
            option = sd_scripts.RENAMED[name]
            if not self._value(option):
                self._say(option, "no effect", f"{name} is given")
            self._set(option, _as_given(option, value), name)
        elif value in sd_scripts.HARMLESS.get(name, ()):
            self._say(name, "no effect", "it is always so here")
        elif families and not off:
            self._refuse(name, f"{FAMILIES[self.family].title} cannot be told this here yet")
        else:
            self._of_sd_scripts(name, value, off=off)

    def _takes_sampler(self, value: Any) -> bool:
        """Whether sample images of the family can be made with this sampler."""
        facts = TABLE.get(self.options.get("family", "sd"))
        sampler = SAMPLERS.get(value) if isinstance(value, str) else None
        return facts is None or sampler is None or sampler.fits(facts.traits)

    def _of_another(self, name: str, families: Sequence[str]) -> bool:
        """Whether kohya's programs would not read this option of ours here."""
        is_swap = name in tables.SWAP and self.family not in families
        return is_swap or (name in tables.LAUNCH and self.form == "page")

    def _of_sd_scripts(self, name: str, value: Any, *, off: bool) -> None:
        """A key that sd-scripts has and we have not."""
        if name in sd_scripts.WITHOUT_EFFECT:
            self._say(name, "no effect", sd_scripts.WITHOUT_EFFECT[name])
        elif name in sd_scripts.NOT_SUPPORTED:
            if off:
                self._say(name, "no effect", "off")
            else:
                self._refuse(name, sd_scripts.NOT_SUPPORTED[name])
        elif off:
            known = name in sd_scripts.RENAMED
            self._say(name, "no effect", "off" if known else "empty or off, and no key that is known")
        else:
            self._refuse(name, f"there is no such key{nearest(name, OPTIONS)}; leave it out, if it is of no importance")


def _trainer_name(name: str) -> str:
    return tables.ARGUMENT_NAMES.get(name, name)


def _as_given(option: str, value: Any) -> Any:
    """A value of the page, where numbers may be texts and empty texts mean nothing, as our option takes it."""
    declared = OPTIONS[option]
    if value == "" and declared.kind != "str":
        return None
    if isinstance(value, str) and declared.kind in ("int", "float", "bool"):
        value = from_text(declared, value)
    return as_ours(declared, value)


def _shown(value: Any) -> str:
    return value if value == HIDDEN else repr(list(value) if isinstance(value, tuple) else value)


def preset_text(imported: Imported, source: str) -> str:
    """The preset as TOML, with where it came from at its top. Raises ConfigError when there is something refused."""
    if imported.refusals:
        raise ConfigError([Problem("", reason) for reason in imported.refusals])
    head = f"# {imported.title}, imported from {source}.\n\n"
    return head + writing.to_toml(imported.checked.values, complete=False)

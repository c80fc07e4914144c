"""Options whose values, right by themselves, do not go together. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Literal

from trainer import files
from trainer.models.families import AUTO
from trainer.models.families.facts import CONTROLS, CONVOLUTIONAL, FLOW, TRAINS_ENCODERS
from trainer.options import blocks
from trainer.options.config import OPTIONS, Config
from trainer.options.network_kinds import FULL, MOST_RANK, NETWORK_KINDS
from trainer.options.optimizer_table import OPTIMIZERS
from trainer.options.problems import nearest
from trainer.options.sections.samples import SAMPLERS
from trainer.options.sections.training import NETWORK, TEXTUAL_INVERSION
from trainer.options.values import number_of

BELOW_A_RUN = 80  # characters of the longest path in a run folder, that of a file in an abandoned checkpoint


def _endless(what: Literal["picture", "caption"]) -> tuple[str, ...]:
    """The options that make the picture or the caption different from use to use, in too many forms to cache."""
    return tuple(name for name, option in OPTIONS.items() if option.varies == what and not option.cacheable)


VARY_PICTURES, VARY_CAPTIONS = _endless("picture"), _endless("caption")


Conflict = tuple[str, str]  # the option to change, and what is wrong with the way out


def _name_conflicts(config: Config) -> Iterator[Conflict]:
    if re.search(r'[/\\\0:*?"<>|\n\r]', config.output_name) or config.output_name in ("", ".", ".."):
        yield "output_name", f'{config.output_name!r} is not a plain name; leave out / \\ : * ? " < > |'
    elif reason := files.unusable_name(config.output_name):
        yield "output_name", f"{config.output_name!r} {reason}; choose another"
    most, length = files.most_path(), len(str(config.run_dir.absolute())) + BELOW_A_RUN
    if most and length > most:
        yield (
            "output_dir",
            f"paths in {config.run_dir} would have up to {length} characters, and Windows takes {most}; choose a "
            "shorter output_dir or output_name, or switch LongPathsEnabled on in the registry",
        )
    if any(not extension.startswith(".") for extension in config.caption_extensions):
        yield (
            "caption_extension",
            f'{config.caption_extension!r}: each extension must begin with a dot, like ".txt" or ".txt,.caption"',
        )


def _caption_conflicts(config: Config) -> Iterator[Conflict]:
    if not config.caption_separator:
        yield "caption_separator", 'is empty; the parts of a caption are separated by something, "," as a rule'


def _range_conflicts(config: Config) -> Iterator[Conflict]:
    if config.enable_bucket and config.min_bucket_reso > config.max_bucket_reso:
        yield "min_bucket_reso", f"{config.min_bucket_reso} is above max_bucket_reso = {config.max_bucket_reso}"
    step = config.facts.granularity
    if config.bucket_reso_steps % step != 0:
        yield "bucket_reso_steps", f"{config.bucket_reso_steps} is not a multiple of {step}"
    folds = CONVOLUTIONAL not in config.facts.traits  # a convolution takes any number of latents
    if folds and not config.enable_bucket and any(side % step for side in config.resolution_size):
        yield "resolution", f"{config.resolution!r}: each side must be a multiple of {step} pixels for this model"
    if config.min_timestep >= config.max_timestep:
        yield "min_timestep", f"{config.min_timestep} is not below max_timestep = {config.max_timestep}"
    if config.max_token_length not in (75, 150, 225):
        yield "max_token_length", f"{config.max_token_length} is not 75, 150 or 225"


def _picture_conflicts(config: Config) -> Iterator[Conflict]:
    for name in VARY_PICTURES:
        if config.cache_latents and getattr(config, name):
            yield "cache_latents", f"cannot go with {name}, which makes every use another picture; choose one"
    if config.face_crop_aug_range and config.face_crop_range is None:
        yield (
            "face_crop_aug_range",
            f'{config.face_crop_aug_range!r} is not a range; write the least and the most face sizes, like "2.0,4.0"',
        )
    if config.face_crop_aug_range and config.enable_bucket:
        yield "face_crop_aug_range", "cannot go with enable_bucket, which keeps the whole picture; choose one"
    if config.masked_loss and not config.conditioning_data_dir and not config.dataset_config:
        yield (
            "masked_loss",
            "needs conditioning_data_dir, the folder of the masks; alpha_mask takes the images' own transparency",
        )
    controls = config.has_controls
    if controls and config.family != AUTO and CONTROLS not in config.facts.traits:
        yield (
            "conditioning_data_dir",
            f"has no effect without masked_loss = true: {config.facts.title} takes no control pictures; set it, or "
            "leave the folder out",
        )
    if config.control_resolution and not (controls or config.dataset_config):
        yield "control_resolution", "has no effect without conditioning_data_dir; name it, or leave this out"


def _cache_conflicts(config: Config) -> Iterator[Conflict]:
    varying = [name for name in VARY_CAPTIONS if getattr(config, name)]
    by_layers = config.training_kind != TEXTUAL_INVERSION and config.trains_text_encoder
    if config.cache_text_encoder_outputs and by_layers and config.family != AUTO:
        yield (
            "cache_text_encoder_outputs",
            "the text encoder is trained, so its outputs change; set network_train_unet_only = true or do not cache",
        )
    if config.cache_text_encoder_outputs and varying:
        yield (
            "cache_text_encoder_outputs",
            f"cannot go with {' and '.join(varying)}, which {'varies' if len(varying) == 1 else 'vary'} the caption; "
            "choose one",
        )
    if config.cache_latents_to_disk and not config.cache_latents:
        yield "cache_latents_to_disk", "needs cache_latents = true"
    if config.cache_text_encoder_outputs_to_disk and not config.cache_text_encoder_outputs:
        yield "cache_text_encoder_outputs_to_disk", "needs cache_text_encoder_outputs = true"
    if config.cache_only and not (config.cache_latents_to_disk or config.cache_text_encoder_outputs_to_disk):
        yield (
            "cache_only",
            "there is nothing to prepare on disk; set cache_latents_to_disk = true or "
            "cache_text_encoder_outputs_to_disk = true",
        )


def _training_conflicts(config: Config) -> Iterator[Conflict]:
    if config.training_kind == NETWORK and config.network_train_unet_only and config.network_train_text_encoder_only:
        yield "network_train_unet_only", "cannot go with network_train_text_encoder_only; choose one"
    elif not any(config.peak_learning_rates.values()):
        yield "learning_rate", "is 0 for every trained part, so nothing would be trained; set one above 0"
    if config.training_kind == NETWORK and config.dim_from_weights and not config.network_weights:
        yield "dim_from_weights", "needs network_weights, the LoRA file to take the ranks from"
    for name in ("optimizer_args", "lr_scheduler_args"):
        for argument in getattr(config, name):
            if "=" not in argument:
                yield name, f"{argument!r} is not of the form name=value"
    if config.adaptive_noise_scale and config.noise_offset and config.multires_noise_iterations:
        yield "adaptive_noise_scale", "cannot go with multires_noise_iterations; leave one out"


def _network_conflicts(config: Config) -> Iterator[Conflict]:
    if config.training_kind != NETWORK:
        return
    kind = config.kind
    for name in ("network_dim", "conv_dim"):
        if (getattr(config, name) or 0) > MOST_RANK and not kind.any_rank:
            yield name, f"{getattr(config, name)} is above {MOST_RANK}; only LoKr makes whole matrices of more"
    for name in ("network_dropout", "rank_dropout", "module_dropout"):
        if getattr(config, name) and name not in kind.dropouts:
            others = ", ".join(other.title for other in NETWORK_KINDS.values() if name in other.dropouts)
            yield name, f"there is none of {kind.title}; leave it out, or train one of {others}"
    if config.scale_weight_norms and not kind.limits_norms:
        yield "scale_weight_norms", f"{kind.title} has no norm that can be limited; leave it out"
    ratios = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
    if not kind.plus:
        yield from ((name, f"LoRA+ is for LoRA, not for {kind.title}") for name in ratios if getattr(config, name))
    if not kind.folded and config.family != AUTO and config.facts.keys not in ("kohya", "sai"):
        yield (
            "network_kind",
            f"nothing reads a file of {kind.title} for {config.facts.title}; choose lora, or lokr, which ComfyUI reads",
        )
    if config.dim_from_weights and not kind.plus:
        yield "dim_from_weights", f"reads the ranks of a LoRA, not of {kind.title}; set network_dim"
    yield from _block_conflicts(config)
    if len(config.base_weights_multiplier) > max(1, len(config.base_weights)):
        yield "base_weights_multiplier", f"has more than the {len(config.base_weights)} numbers that base_weights needs"
    for text in config.base_weights_multiplier:
        if not isinstance(number_of(text), int | float) or not math.isfinite(float(text)):
            yield "base_weights_multiplier", f"{text!r} is not a number"


def _block_conflicts(config: Config) -> Iterator[Conflict]:
    """Lists of a U-Net's blocks; how long they have to be, only the family tells."""
    lists = (*blocks.RANKS, *blocks.ALPHAS, *blocks.RATES)
    for name in lists if config.family != AUTO else ():
        if wrong := blocks.problem(config, name):
            yield name, wrong
    if any(getattr(config, name) for name in blocks.RATES) and config.network_train_text_encoder_only:
        yield "down_lr_weight", "is of the U-Net, which is not trained; leave down_, mid_ and up_lr_weight out"


def _optimizer_conflicts(config: Config) -> Iterator[Conflict]:
    optimizer, name = config.optimizer, config.optimizer_type
    rates = {rate for rate in config.peak_learning_rates.values() if rate}
    if optimizer.one_rate and len(rates) > 1:
        yield (
            "learning_rate",
            f"{name} finds one rate for all trained parts; give them the same factor (1.0 as a rule), or 0",
        )
    if optimizer.one_rate and any(getattr(config, name) for name in blocks.RATES):
        yield "down_lr_weight", f"{name} finds one rate for all weights; leave down_, mid_ and up_lr_weight out"
    if optimizer.one_rate and config.plus_ratios:
        yield "loraplus_lr_ratio", f"{name} finds one rate for all weights; leave LoRA+ out"
    if optimizer.averages and config.scale_weight_norms:
        yield "scale_weight_norms", f"cannot go with {name}, which averages weights that are not scaled; choose one"
    if optimizer.averages and config.lr_curve != "constant":
        yield (
            "lr_scheduler",
            f"{name} needs none: set constant; its warm-up is warmup_steps in optimizer_args",
        )
    if optimizer.averages and config.use_ema:
        yield "use_ema", f"{name} keeps an average of its own, which is what model files hold; turn use_ema off"
    arguments = config.optimizer_arguments if optimizer.relative_step else {}
    follows = config.lr_curve == "adafactor"
    if arguments.get("relative_step") and not follows:
        yield "lr_scheduler", 'relative_step sets the rate by itself: set lr_scheduler = "adafactor", or leave it out'
    if follows and not arguments.get("relative_step"):
        yield "lr_scheduler", "adafactor belongs to Adafactor with relative_step=True in optimizer_args; set both"
    if arguments.get("warmup_init") and not arguments.get("relative_step"):
        yield "optimizer_args", "warmup_init belongs to relative_step=True; set both, or leave it out"


def _finetune_conflicts(config: Config) -> Iterator[Conflict]:
    """What a training of the base model's own weights cannot go with."""
    if config.full_bf16 and config.mixed_precision != "bf16":
        yield "full_bf16", "needs mixed_precision = bf16"
    if config.full_bf16 and not config.optimizer.by_parameter:
        fitting = ", ".join(name for name, optimizer in OPTIMIZERS.items() if optimizer.by_parameter)
        yield (
            "full_bf16",
            f"cannot go with {config.optimizer_type}, which looks at all weights together, and they are made whole one "
            f"after the other; choose one of {fitting}",
        )
    if config.base_weights and not config.trains_network:
        yield "base_weights", "is for training_kind = network; merge the files into the base model first"
    if not config.fine_tunes:
        return
    for name in ("fp8_base", "quantize", "base_gguf", "blocks_to_swap"):
        if getattr(config, name) not in (False, "no", "", 0):
            yield name, "is for frozen weights, and training_kind = finetune trains them; leave it out"
    if config.checkpoint_mirror and config.save_model_as == "diffusers":
        yield "save_model_as", "a mirror takes model files, not folders; choose safetensors"


def _embedding_conflicts(config: Config) -> Iterator[Conflict]:
    """What a textual inversion needs."""
    if config.training_kind != TEXTUAL_INVERSION:
        return
    if config.family != AUTO and TRAINS_ENCODERS not in config.facts.traits:
        yield "training_kind", f"there is no textual inversion of {config.facts.title}: nothing reads one"
        return
    word = config.token_string
    if not word.strip():
        yield "token_string", "is empty: choose the word that captions use for what is learnt"
    elif word != word.strip() or len(word.split()) > 1 or "," in word:
        yield "token_string", f"{word!r} is not one word"
    if config.cache_text_encoder_outputs:
        yield "cache_text_encoder_outputs", "what captions mean changes with the word that is learnt; do not cache it"


def _class_image_conflicts(config: Config) -> Iterator[Conflict]:
    if not config.num_class_images:
        return
    if config.dataset_config:
        yield "num_class_images", "cannot go with dataset_config, which names folders of its own; choose one"
    elif not config.reg_data_dir:
        yield "reg_data_dir", "is empty: name the folder for num_class_images"
    if not config.class_prompt.strip():
        yield "class_prompt", "is empty: say what num_class_images show"
    elif len(config.class_prompt.strip().splitlines()) > 1:
        yield "class_prompt", "has more than one line; all class images are of one prompt"


def _whole_weight_conflicts(config: Config) -> Iterator[Conflict]:
    """What reads or changes the base model's weights needs them whole."""
    if config.fine_tunes:
        return
    packed = [name for name in ("quantize", "base_gguf") if getattr(config, name) not in ("no", "")]
    smaller = packed + ["fp8_base"] * config.fp8_base
    if (packed and not config.kind.plus) or (smaller and config.kind.needs_weights):
        yield (
            "network_kind",
            f"{config.kind.title} needs the base model's weights whole, and {' and '.join(smaller)} packs them; "
            "choose lora, or leave that out",
        )
    if packed and config.base_weights:
        yield "base_weights", f"nothing can be added to weights that {packed[0]} packs; leave one out"
    moved = [name for name in ("fp8_base", "blocks_to_swap", "torch_compile") if getattr(config, name)]
    if moved and config.base_weights and not config.base_weights_in_samples:
        yield "base_weights_in_samples", f"cannot be off with {moved[0]}; leave one out"


def _memory_conflicts(config: Config) -> Iterator[Conflict]:
    for name in ("fp8_base", "blocks_to_swap", "cpu_offload_checkpointing"):
        if getattr(config, name) and not config.gradient_checkpointing:
            yield name, "needs gradient_checkpointing = true; without it the backward pass keeps what this would save"
    smaller = [name for name in ("fp8_base", "quantize", "base_gguf") if getattr(config, name) not in (False, "no", "")]
    if len(smaller) > 1:
        yield smaller[0], f"cannot go with {' and '.join(smaller[1:])}: each is a way to hold the weights; choose one"
    if config.base_gguf and not config.base_gguf.lower().endswith(".gguf"):
        yield "base_gguf", f"{config.base_gguf!r} is not a .gguf file"
    if config.blocks_to_swap and (config.quantize != "no" or config.base_gguf):
        yield "blocks_to_swap", f"cannot go with {smaller[-1]}, whose weights do not leave the GPU; choose one"
    if config.quantize == "int8wo" and config.mixed_precision != "bf16":
        yield "quantize", "int8wo computes in bfloat16; set mixed_precision = bf16"
    if config.torch_compile:
        for name in ("fp8_base", "blocks_to_swap", "cpu_offload_checkpointing"):
            if getattr(config, name):
                yield "torch_compile", f"cannot go with {name}, which moves or casts what is compiled; choose one"
        if config.dynamo_backend == "no":
            yield "dynamo_backend", "'no' compiles nothing; choose inductor, or turn torch_compile off"
        elif config.dynamo_backend != "inductor" and config.dynamo_mode != "default":
            yield "dynamo_mode", f"{config.dynamo_mode!r} is one of inductor; set dynamo_backend, or leave it out"


def _plateau_conflicts(config: Config) -> Iterator[Conflict]:
    validates = config.validation_split or config.validation_data_dir or config.dataset_config
    if config.lr_curve == "reduce_lr_on_plateau" and not validates:
        yield (
            "lr_scheduler",
            "reduce_lr_on_plateau needs images to validate with: set validation_split or validation_data_dir",
        )


def _watching_conflicts(config: Config) -> Iterator[Conflict]:
    by_steps = config.sample_every_n_steps or config.sample_every_n_epochs
    samples = by_steps or config.sample_at_first or config.sample_at_resume
    if samples and not config.sample_prompts.strip():
        yield (
            "sample_prompts",
            "is empty, but sample images are asked for; write a prompt, or turn sample_every_n_steps, "
            "sample_every_n_epochs, sample_at_first and sample_at_resume off",
        )
    validates = config.validation_split or config.validation_data_dir or config.dataset_config
    if config.early_stopping_patience and not validates:
        yield (
            "early_stopping_patience",
            "needs images to validate with: set validation_split or validation_data_dir",
        )
    if config.max_rollbacks and not config.alarms:
        yield "max_rollbacks", "needs alarms, which see that a training diverges; turn them on, or set it to 0"
    if config.max_rollbacks and not (config.save_state or config.save_every_n_minutes):
        yield "max_rollbacks", "needs checkpoints to go back to; turn save_state on, or set save_every_n_minutes"


def _family_conflicts(config: Config) -> Iterator[Conflict]:
    """What the family does not have; nothing while it is still to be found out."""
    if config.family == AUTO:
        return
    facts = config.facts
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        if not option.applies_to(facts) and value != option.default and (value or option.default):  # 0 is off as well
            yield name, f"does not apply to {facts.title}; leave it out"
    sampler = SAMPLERS.get(config.sample_sampler)
    if sampler and not sampler.fits(facts.traits):
        fitting = ", ".join(name for name, other in SAMPLERS.items() if other.fits(facts.traits))
        yield "sample_sampler", f"{config.sample_sampler!r} cannot sample {facts.title}; choose one of {fitting}"
    if FLOW in facts.traits and config.huber_schedule == "snr" and config.loss_type in ("huber", "smooth_l1"):
        yield "huber_schedule", f"'snr' does not apply to {facts.title}; choose constant or exponential"


def _resume_conflicts(config: Config) -> Iterator[Conflict]:
    for word in config.resume_allow:
        name = word.partition(":")[0]  # what follows names one difference
        if name in OPTIONS and OPTIONS[name].on_resume == "locked":
            yield "resume_allow", f"{name} cannot be allowed: a checkpoint fits only one value"
        elif name not in OPTIONS and name not in ("all", "dataset"):
            yield "resume_allow", f"{name!r} is not an option{nearest(name, OPTIONS)}"


CONFLICTS = (
    _name_conflicts,
    _caption_conflicts,
    _range_conflicts,
    _picture_conflicts,
    _cache_conflicts,
    _training_conflicts,
    _network_conflicts,
    _optimizer_conflicts,
    _memory_conflicts,
    _finetune_conflicts,
    _embedding_conflicts,
    _class_image_conflicts,
    _whole_weight_conflicts,
    _plateau_conflicts,
    _watching_conflicts,
    _family_conflicts,
    _resume_conflicts,
)


def combination_problems(config: Config) -> list[Conflict]:
    """Options whose values, right by themselves, do not go together."""
    return [conflict for conflicts in CONFLICTS for conflict in conflicts(config)]


def without_effect(config: Config) -> Iterator[str]:
    """Notices of options that were set, but do nothing as the others are."""
    if config.lr_curve == "constant" and config.lr_warmup_steps:
        yield "lr_warmup_steps has no effect with lr_scheduler = constant; constant_with_warmup warms up"
    if config.lr_scheduler_type:
        replaced = (
            name for name in ("lr_scheduler", "lr_warmup_steps") if getattr(config, name) != OPTIONS[name].default
        )
        yield from (f"{name} has no effect: lr_scheduler_type takes its place" for name in replaced)
    if config.lr_curve == "adafactor" and config.learning_rate != OPTIONS["learning_rate"].default:
        yield "learning_rate has no effect with relative_step: the rate follows the step alone"
    if config.optimizer_type not in OPTIMIZERS:
        yield (
            f"optimizer_type {config.optimizer_type} is none of those whose resume is tested here: "
            "`python -m trainer drill` shows whether it resumes bit-equal"
        )
    for name, option in OPTIONS.items():
        if not option.serves(config.training_kind) and getattr(config, name) != option.default:
            yield f"{name} has no effect with training_kind = {config.training_kind}"
    for name, option in OPTIONS.items():
        if option.shapes and getattr(config, name) != option.default and not getattr(config, option.shapes):
            yield f"{name} has no effect without {option.shapes}"
    if config.training_kind != NETWORK:
        return
    others = {name: kind for kind in NETWORK_KINDS.values() for name in kind.arguments}
    for name in others.keys() - set(config.kind.arguments):
        if getattr(config, name) != OPTIONS[name].default:
            yield f"{name} has no effect on {config.kind.title}"
    if config.network_preset not in ("", FULL) and config.trains_convolutions:
        yield f"conv_dim has no effect with network_preset = {config.network_preset}, which trains no larger kernels"

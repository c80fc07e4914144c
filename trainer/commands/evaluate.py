"""python -m trainer evaluate: what checkpoints and model files are worth, in figures."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.options.checks import resolve
from trainer.options.config import Config
from trainer.options.sources import read_toml
from trainer.recipe import prompts as prompt_files
from trainer.recipe.prompts import Prompt
from trainer.refusal import Refused

DONE, REFUSED = 0, 3
SAMPLES = 100
logger = logging.getLogger("trainer")
HELP = """
Pictures are made from the training's captions (or --prompts), each with a seed of its own, and compared with the
training's images. They and the result are kept in the run's folder evaluation/; an evaluation that was interrupted goes
on where it was, and one that is repeated with more samples makes only the new ones.

Weights of the networks that judge are files, folders or hub ids; with @sha256:DIGEST after them they are checked.
Without a network, its figures are left out:
  --inception  FID, KID, IS, precision and recall: InceptionV3 in torch-fidelity's format, as .safetensors
  --clip       CLIP score, retrieval and similarity: openai/clip-vit-large-patch14, or any CLIPModel with its tokenizer
  --dino       DINO similarity and memorisation: facebook/dinov2-base, or any Dinov2Model (memorisation by CLIP without)
"""


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.epilog, parser.formatter_class = HELP, argparse.RawDescriptionHelpFormatter
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a checkpoint, a run or a model file")
    parser.add_argument("--config", help="a preset, for model files without a run beside them")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"pictures of each ({SAMPLES})")
    parser.add_argument("--prompts", default="", help="a file of prompts, in the notation of sample_prompts")
    parser.add_argument("--steps", type=int, default=30, help="sampling steps of a picture (30)")
    parser.add_argument("--guidance-scale", type=float, default=7.5, help="of a picture (7.5)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures at once (8)")
    parser.add_argument("--inception", default="", metavar="WEIGHTS", help="see below")
    parser.add_argument("--clip", default="", metavar="WEIGHTS", help="see below")
    parser.add_argument("--dino", default="", metavar="WEIGHTS", help="see below")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Run the command; returns the exit code: 0 done, 3 refused."""
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if min(arguments.samples, arguments.steps, arguments.batch_size) < 1:
            raise Refused("--samples, --steps and --batch-size are 1 or more")
        config = resolve(read_toml(arguments.config))[0] if arguments.config else None
        return _evaluate(arguments, config)
    except Refused as refusal:
        if arguments.json:
            print(json.dumps({"version": 1, "refusal": str(refusal)}, indent=1))
        else:
            print("\n".join(f"Refused: {line}" for line in str(refusal).splitlines()), file=sys.stderr)
        return REFUSED


def _evaluate(arguments: argparse.Namespace, config: Config | None) -> int:
    import torch  # takes seconds; a wrong argument is told at once

    from trainer.data import dataset
    from trainer.judging import evaluation, subjects
    from trainer.judging.evaluation import Judge, Networks, Settings
    from trainer.judging.subjects import Painter

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = subjects.find(arguments.paths, config)
    first = chosen[0].config  # its dataset and prompts are those of all, so that the figures can be compared
    scan = dataset.scan(first)
    width, height = first.resolution_size
    if arguments.prompts:
        asked = prompt_files.read(first.replace(sample_prompts=arguments.prompts))
    else:
        captions = [entry.caption for entry in scan.entries]
        asked = [Prompt(text, "", width, height, 0, arguments.guidance_scale, arguments.steps) for text in captions]
    if not asked:
        raise Refused(f"--prompts: {arguments.prompts} has no prompt")
    prompts = evaluation.prompts_of(asked, arguments.samples, first.seed)
    settings = Settings(Networks(arguments.inception, arguments.clip, arguments.dino), batch_size=arguments.batch_size)
    real = evaluation.training_pictures(scan.entries, prompts[0].width, prompts[0].height)
    judge = Judge(settings, real, [entry.relative for entry in scan.entries], device)
    painter, results = Painter(device), []
    for subject in chosen:
        paths = evaluation.make_pictures(painter, subject, prompts, arguments.batch_size)
        result = judge.judge(subject, prompts, evaluation.opened(paths))
        logger.info("%s: written to %s", subject.name, evaluation.record(result))
        results.append(result)
    if arguments.json:
        print(json.dumps({"version": 1, "results": [result.as_json() for result in results]}, indent=1))
        return DONE
    print(evaluation.table(results))
    notes = dict.fromkeys(
        [f"left out: {reason}" for result in results for reason in result.skipped.values()]
        + [warning for result in results for warning in result.warnings]
    )
    print("\n".join(notes))
    return DONE

"""What `faceanon anonymize` opens: the models its options name, and the engine they ask for."""

from __future__ import annotations

import argparse
import os
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import cli_check, cli_targets
from .engines import Engine, Maker, Staff, check_ray, make_picture, run_here, run_on_ray
from .errors import InputError

if TYPE_CHECKING:
    from .encoder import AttributeEncoder
    from .pipeline import Anonymizer, Settings

ENGINES = ("local", "ray")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--engine", choices=ENGINES, default="local",
        help="ray: a folder by many processes, on the cluster RAY_ADDRESS names or else on this machine (default: local)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, help="processes of --engine ray (default: as many as there are cores for)")
    parser.add_argument(
        "--threads", type=int, help="threads for each picture; only the same number repeats every bit (default: all cores)"
    )


def use_threads(options: argparse.Namespace) -> None:
    """Check the options, and let this process compute with as many threads as they say.

    Raises: InputError.
    """
    for name in ("workers", "threads"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")
    if options.engine == "local" and options.workers is not None:
        raise InputError("--workers belongs to --engine ray; the local engine is one process")
    if options.engine == "ray" and not options.source.is_dir():
        raise InputError("--engine ray is for folders; leave it out for a single picture")
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)


def open_anonymizer(options: argparse.Namespace) -> Anonymizer:
    """With the models that the options name. Raises: InputError or WeightsError for what cannot be opened."""
    from .checks import usable_device
    from .pipeline import Anonymizer
    from .recognition import load_recognition
    from .semantic_parser import load_semantic_parser

    usable_device(options.device)
    face_parser = load_semantic_parser(options.parser).to(options.device) if options.parser is not None else None
    return Anonymizer(
        device=options.device,
        parser=face_parser,
        recognisers=cli_check.open_recognisers(options),
        galleries=cli_targets.galleries(options),
        guide=open_guide(options.encoder),
        recognition=load_recognition(options.identity_network) if options.identity_network is not None else None,
    )


@cache
def open_guide(path: Path | None) -> AttributeEncoder | None:
    """The encoder the user brings."""
    if path is None:
        return None
    from .vision_encoders import load_vision_encoder

    return load_vision_encoder(path)


def driver_options(options: argparse.Namespace) -> argparse.Namespace:
    """The options for what this process itself opens; where a running cluster makes the pictures, it needs no GPU."""
    if options.engine == "ray" and os.environ.get("RAY_ADDRESS"):
        return argparse.Namespace(**{**vars(options), "device": "cpu"})
    return options


def open_engine(options: argparse.Namespace, anonymizer: Anonymizer, settings: Settings) -> Engine:
    """The engine; `anonymizer` is what it uses in this process.

    Raises: InputError if Ray is asked for and not installed.
    """
    if options.engine == "local":
        return partial(run_here, partial(make_picture, anonymizer, settings, options.keep_metadata))
    import torch

    check_ray()
    needed = argparse.Namespace(**{name: value for name, value in vars(options).items() if name != "run"})
    # as many threads as this process has, since another number would change the last bits of the results
    staff = Staff(options.workers, torch.get_num_threads(), int(options.device.startswith("cuda")))
    return partial(run_on_ray, partial(_open_maker, needed, settings), staff)


def _open_maker(options: argparse.Namespace, settings: Settings) -> Maker:
    """Called in a worker."""
    return partial(make_picture, open_anonymizer(options), settings, options.keep_metadata)

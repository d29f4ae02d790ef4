"""Opening a model for a command: the file is read and checked whole before any device is touched."""

import argparse
import sys
from typing import TYPE_CHECKING

from harness import options

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.engine import Model
    from model.gguf_file import GGUFFile


def open_file(args: argparse.Namespace) -> "tuple[GGUFFile, ModelConfig]":
    """The MODEL argument's file and config. Raises InputError for a file that the forward pass cannot run."""
    from model.config import ModelConfig, require_supported
    from model.gguf_file import GGUFFile

    gguf = GGUFFile.open(options.model_path(args))
    config = ModelConfig.from_gguf(gguf)
    require_supported(config, gguf)
    return gguf, config


def load_model(args: argparse.Namespace, gguf: "GGUFFile") -> "Model":
    """The model on the device that --device names. Raises DeviceError when there is none or it cannot hold the weights."""
    from model.engine import Model
    from vkbackend.device import open_device

    return Model.load(gguf, open_device(args.device))


def warn_beyond_training(config: "ModelConfig", n_ctx: int) -> None:
    """Say on standard error that a context is longer than the model was trained for: it runs, its text may be poor."""
    if n_ctx > config.n_ctx_train:
        print(
            f"latentvk: warning: context of {n_ctx} tokens, {config.name} was trained for {config.n_ctx_train}",
            file=sys.stderr,
        )

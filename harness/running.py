"""Opening a model for a command: the file is read and checked whole before any device is touched."""

import argparse
import sys
from collections import ChainMap
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from harness import options
from vkbackend.errors import InputError, quoted, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path as FilePath

    from model.config import ModelConfig
    from model.engine import Model, Session
    from model.gguf_file import GGUFFile
    from model.layout import Path
    from vkbackend.device import Device

# What quantisations of one model have in common.
_SHAPE = (
    "n_layer", "n_dense", "n_embd", "n_vocab", "n_head", "q_lora", "kv_lora", "qk_nope", "qk_rope", "v_head", "n_ff",
    "n_expert", "n_expert_used", "n_expert_shared", "n_ff_exp",
)  # fmt: skip


def open_gguf(args: argparse.Namespace, file: "FilePath | None" = None) -> "GGUFFile":
    """The MODEL argument's file, or another one, with the keys that --override-kv sets, each told on standard error."""
    from model.gguf_file import GGUFFile

    gguf = GGUFFile.open(options.model_path(args) if file is None else file)
    changes = {key: value for found in args.override_kv for key, value in found.items()}
    for key, value in changes.items():
        before = f"in place of {quoted(gguf.kv[key])}" if key in gguf.kv else "which the file does not set"
        print(f"latentvk: note: {shown(key)} is taken as {quoted(value)}, {before}", file=sys.stderr)
    return replace(gguf, kv=ChainMap(changes, cast("dict[str, Any]", gguf.kv))) if changes else gguf


def open_file(args: argparse.Namespace, file: "FilePath | None" = None) -> "tuple[GGUFFile, ModelConfig]":
    """The MODEL argument's file, or another one, and its config.

    Raises InputError for a file that the forward pass cannot run.
    """
    from model.config import ModelConfig, require_supported

    gguf = open_gguf(args, file)
    config = ModelConfig.from_gguf(gguf)
    require_supported(config, gguf)
    return gguf, config


def open_files(args: argparse.Namespace, files: "Sequence[FilePath]") -> "list[tuple[GGUFFile, ModelConfig]]":
    """Several quantisations of one model. Raises InputError as ``open_file``, and where the shapes differ."""
    opened = [open_file(args, file) for file in files]
    first, config = opened[0]
    for gguf, other in opened[1:]:
        for name in _SHAPE:
            if getattr(other, name) != getattr(config, name):
                raise InputError(
                    f"{gguf.path}: {name} {getattr(other, name)}, expected {getattr(config, name)} as in {first.path}; "
                    "give files of one model"
                )
    return opened


def file_names(files: "Sequence[FilePath]") -> list[str]:
    """The files' names, numbered where two are alike."""
    names = [file.name for file in files]
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names, 1)]


def load_in_groups(
    opened: "Sequence[tuple[GGUFFile, ModelConfig]]", device: "Device", session_bytes: int
) -> "Iterator[list[Model]]":
    """The models of files that were opened, all at once where the device has room for them and ``session_bytes`` beside
    them, else one after the other; a group is freed when the next is asked for. Raises as ``load_model``."""
    from model.device_weights import predicted_bytes

    needed = sum(predicted_bytes(config, gguf) for gguf, config in opened) + session_bytes
    together = needed <= device.memory.room().nbytes
    for group in [opened] if together else [[each] for each in opened]:
        models: list[Model] = []
        try:
            for gguf, config in group:
                models.append(load_model(gguf, config, device))
            yield models
        finally:
            for model in models:
                model.close()


def load_model(
    gguf: "GGUFFile",
    config: "ModelConfig",
    device: "Device",
    path: "Path | None" = None,
    n_ctx: int = 0,
    chunk: int | None = None,
) -> "Model":
    """The model that ``open_file`` opened, on an open device.

    Raises DeviceError when the device cannot hold the weights or, where ``path`` tells of a session to be opened next,
    that session beside them: before the weights are read.
    """
    from model.engine import Model  # not at the top: without a Vulkan loader importing it is a traceback

    model = Model.load(gguf, device, path, n_ctx, chunk, config)
    note_gating(gguf, config)
    return model


def note_gating(gguf: "GGUFFile", config: "ModelConfig") -> None:
    """Say on standard error where the gating function is assumed, or looks wrong: a wrong one runs, badly."""
    from model.config import KEYS

    if config.n_dense == config.n_layer:
        return
    key = f"{config.arch}.{KEYS['gating']}"
    if config.gating == "softmax" and config.expert_bias:
        print(
            f"latentvk: warning: {gguf.path} has exp_probs_b tensors, as models with sigmoid gating do, but runs with "
            f"softmax; if its text makes no sense, use --override-kv {key}=int:2",
            file=sys.stderr,
        )
    if not gguf.kv.get(key):  # 0 is how a converter writes "not set"
        print(
            f"latentvk: note: {gguf.path} does not set key {key}, {config.gating} is assumed from its layer and "
            "vocabulary counts",
            file=sys.stderr,
        )


def open_session(model: "Model", path: "Path", n_ctx: int, chunk: int | None) -> "Session":
    """A session for `n_ctx` tokens along `path`; a model's first is tried out (harness/smoke.py).

    Raises DeviceError when its buffers do not fit the device, or when the model's logits are not finite.
    """
    from harness.smoke import try_out
    from model.engine import Session

    session = Session(model, path, n_ctx, chunk)
    if not model.tried_out:
        try:
            try_out(session)
        except BaseException:
            session.close()
            raise
        model.tried_out = True
    return session


def warn_beyond_training(config: "ModelConfig", n_ctx: int) -> None:
    """Say on standard error that a context is longer than the model was trained for: it runs, its text may be poor."""
    if n_ctx > config.n_ctx_train:
        print(
            f"latentvk: warning: context of {n_ctx} tokens, {config.name} was trained for {config.n_ctx_train}",
            file=sys.stderr,
        )

"""The model under search: its tokenizer, its fresh copies, its identity.

Only safetensors weights are read and no code that comes with a model is run; there is no switch for either.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from transformers.utils import logging

from hpsearch.config import PACKAGE_SCHEME, resolve_path
from hpsearch.errors import ConfigError, HubError
from hpsearch.hub import TWO_WAYS_ON, own_code, pickles_in, prepare_hub
from hpsearch.vocabulary import Vocabulary, trim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hpsearch.config import ModelConfig

_NO_LIMIT = 10**6  # tokenizers without a limit of their own report a huge number


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A checked model: everything needed to make a fresh copy of it."""

    config: ModelConfig
    name: str
    """An absolute folder, or a Hub id."""
    model_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Longest input, in tokens."""
    fingerprint: str
    """Changes with the weights, the shape and the tokenizer."""

    @property
    def is_local(self) -> bool:
        """Whether the model lies in a folder, and not on the Hub."""
        return Path(self.name).is_absolute()

    @property
    def hidden_size(self) -> int:
        """Width of the model's layers."""
        return int(self.model_config.hidden_size)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, special tokens included, cut at `max_length`."""
        ids: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]
        return ids

    def new_model(self, label_names: Sequence[str], dropouts: Mapping[str, float]) -> PreTrainedModel:
        """Return a fresh model in float32 with a new classification head, initialised from torch's current seed."""
        if not self.config.pretrained:
            return self.empty_model(label_names, dropouts)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            self.name,
            config=self._config_of(label_names, dropouts),
            # On the Hub, the commit that was opened: a branch may move on during a search.
            revision=getattr(self.model_config, "_commit_hash", None) or self.config.revision or "main",
            dtype=torch.float32,  # the default is the checkpoint's own, and half-precision weights do not train
            use_safetensors=True,
            trust_remote_code=False,
        )
        return model

    def empty_model(self, label_names: Sequence[str], dropouts: Mapping[str, float]) -> PreTrainedModel:
        """Return a model of the same shape with random weights, or with none on torch's device `meta`."""
        config = self._config_of(label_names, dropouts)
        return cast("PreTrainedModel", AutoModelForSequenceClassification.from_config(config, dtype=torch.float32))

    def weight_bytes(self, label_names: Sequence[str]) -> int:
        """Return how much memory the weights take, in float32 and with the full vocabulary."""
        with torch.device("meta"):
            return sum(4 * parameter.numel() for parameter in self.empty_model(label_names, {}).parameters())

    def check_it_loads(self, label_names: Sequence[str]) -> None:
        """Raise whatever keeps the weights from being loaded, or the shape from being built where there are none."""
        if self.config.pretrained:
            self.new_model(label_names, {})
        else:
            with torch.device("meta"):
                self.empty_model(label_names, {})

    def _config_of(self, label_names: Sequence[str], dropouts: Mapping[str, float]) -> PretrainedConfig:
        config = type(self.model_config).from_dict(self.model_config.to_dict())
        config.num_labels = len(label_names)
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: i for i, name in enumerate(label_names)}
        for name, value in dropouts.items():
            setattr(config, name, value)
        return config


class FreshModels:
    """Makes models with the same initial weights again and again, reading them once for each seed.

    A model is built without weights, so that its dropouts are those asked for whatever the architecture calls them, and
    is given copies of the initial ones. Nothing is read from disk and nothing drawn after the first model of a seed.
    """

    def __init__(
        self, source: ModelSource, label_names: Sequence[str], used_ids: NDArray[np.integer], *, seed: int
    ) -> None:
        """Read the weights of the first seed.

        Args:
            source: What models are made of.
            label_names: By class id.
            used_ids: Every token id that the models will be given, of any shape.
            seed: Of the weights that no checkpoint has: the head, at times the pooler.
        """
        self._source = source
        self._label_names = label_names
        model = self._initial(seed)
        self.vocabulary = Vocabulary.of(model, used_ids)
        """The rows of the embedding that the models have."""
        self._keep(model, seed)

    def make(self, dropouts: Mapping[str, float], *, seed: int) -> PreTrainedModel:
        """Return a model as fine-tuning starts from, with torch's generators at `seed`."""
        if seed != self._seed:
            self._keep(self._initial(seed), seed)
        with torch.device("meta"):
            model = self._source.empty_model(self._label_names, dropouts)
            trim(model, self.vocabulary)
        model.load_state_dict({name: values.clone() for name, values in self._state.items()}, assign=True)
        for name, values in self._buffers.items():
            owner, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(owner), own_name, values.clone())
        set_seed(seed)
        return model

    def _initial(self, seed: int) -> PreTrainedModel:
        set_seed(seed)
        return self._source.new_model(self._label_names, {})

    def _keep(self, model: PreTrainedModel, seed: int) -> None:
        trim(model, self.vocabulary)
        self._seed = seed
        self._state = {name: values.detach() for name, values in model.state_dict().items()}
        # Those that no checkpoint has, such as position numbers.
        self._buffers = {name: values for name, values in model.named_buffers() if name not in self._state}


def open_model(config: ModelConfig, dropouts: Sequence[str]) -> ModelSource:
    """Check that a model can be had and load its tokenizer.

    Args:
        config: Which model.
        dropouts: Names that the model's config must have.

    Raises:
        ConfigError: If a local folder holds no usable model, or the model has no such dropout.
        HubError: If the name is a Hub id and the Hub does not answer.
    """
    # What these libraries say on the way (weights that are new, bars while loading) is known or is no news.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = _local_folder(config.name)
    if folder is not None:
        _check_folder(folder, pretrained=config.pretrained)
    else:
        prepare_hub()
    name = str(folder or config.name)
    revision = config.revision or "main"
    try:
        model_config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # what broken files make these libraries raise is no closed set
        problem = " ".join(str(error).split())
        if folder is None:
            raise HubError(
                f"model.name {config.name!r}: expected a folder or an answer from the Hugging Face Hub, "
                f"got: {problem}\n{TWO_WAYS_ON}"
            ) from error
        raise ConfigError(f"model.name: expected a Hugging Face model in {folder}, got: {problem}") from error
    if problem := own_code((model_config, tokenizer)):
        raise ConfigError(f"model.name {config.name!r}: {problem}")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without its files transformers 5.23 makes a tokenizer to which every word is unknown, and says nothing.
        raise ConfigError(f"model.name: expected a tokenizer in {name}, got none; save it there with save_pretrained")
    for dropout in dropouts:
        if not hasattr(model_config, dropout):
            known = [name for name in vars(model_config) if "dropout" in name]
            raise ConfigError(
                f"{dropout}: expected a dropout of {config.name} ({model_config.model_type}), got none of that name; "
                f"it has {', '.join(sorted(known)) or 'no dropout'}; "
                f"--set defaults.{dropout}=null --set space.{dropout}=null leaves it out"
            )
    max_length = _max_length(config, model_config, tokenizer)
    tokenizer.model_max_length = max_length  # saved with every checkpoint, so that an export cuts texts where we do
    return ModelSource(
        config=config,
        name=name,
        model_config=model_config,
        tokenizer=tokenizer,
        max_length=max_length,
        fingerprint=_fingerprint(config, folder, model_config, max_length),
    )


def is_local_model(name: str) -> bool:
    """Tell whether a model's name means a folder, and no model of the Hub.

    Raises:
        ConfigError: If it can only mean a folder, and there is none.
    """
    return _local_folder(name) is not None


def _local_folder(name: str) -> Path | None:
    path = resolve_path(name)
    if path.is_dir():
        return path
    looks_like_path = name.startswith((PACKAGE_SCHEME, ".", "/", "~")) or name.count("/") > 1 or path.exists()
    if looks_like_path:
        raise ConfigError(
            f"model.name: expected a folder with a model, got {name!r}, which is "
            f"{'a file' if path.exists() else 'not there'} (looked for {path})"
        )
    return None


def _check_folder(folder: Path, *, pretrained: bool) -> None:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.name: expected a config.json in {folder}, got none")
    if pretrained and not any(folder.glob("*.safetensors")):
        pickles = pickles_in(folder)
        advice = (
            f"only {', '.join(pickles)}, which can run code when opened; load it where you trust it and save it again "
            f"with model.save_pretrained(FOLDER)"
            if pickles
            else "none; set model.pretrained: false to start from random weights"
        )
        raise ConfigError(f"model.name: expected safetensors weights in {folder}, got {advice}")


def _max_length(config: ModelConfig, model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    limits = [tokenizer.model_max_length, getattr(model_config, "max_position_embeddings", None)]
    # XLNet, which has no limit, says -1.
    known = [length for length in limits if length is not None and 0 < length < _NO_LIMIT]
    limit = min(known, default=config.max_length)
    if limit is None:
        raise ConfigError(f"model.max_length: expected a length, got none, and {config.name} has no limit of its own")
    if config.max_length is not None and config.max_length > limit:
        raise ConfigError(
            f"model.max_length: expected at most {limit} tokens for {config.name}, got {config.max_length}"
        )
    return config.max_length or limit


def _fingerprint(config: ModelConfig, folder: Path | None, model_config: PretrainedConfig, max_length: int) -> str:
    state = hashlib.sha256(f"pretrained={config.pretrained}, max_length={max_length}".encode())
    if folder is None:
        commit: Any = getattr(model_config, "_commit_hash", None)
        state.update(f"{config.name}@{commit or config.revision}".encode())
    else:
        kinds = ["*.json", "*.txt", "*.model", *(["*.safetensors"] if config.pretrained else [])]
        for path in sorted(path for kind in kinds for path in folder.glob(kind) if path.is_file()):
            state.update(path.name.encode())
            with path.open("rb") as file:
                state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()[:16]

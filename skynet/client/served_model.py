"""The model that a cluster runs, as a client sees it: what may be asked of it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from skynet.errors import BadRequest
from skynet.models.registry import load_architecture
from skynet.request.generation_config import GenerationDefaults, generation_defaults
from skynet.request.options import Limits, check_options
from skynet.request.record import Options
from skynet.request.task_names import GENERATE
from skynet.request.text_tasks import TextTasks
from skynet.store.plans import Target
from skynet.store.weights import WeightStore
from skynet.tokenizer.text import Text


@dataclass(frozen=True)
class ServedModel:
    """What a client needs of the model, all of it from Redis."""

    text: Text
    defaults: GenerationDefaults
    text_tasks: TextTasks

    @classmethod
    def staged(cls, client: redis.Redis, digest: str) -> ServedModel:
        """From what is staged.

        Raises:
            NoModel: it is not there.
        """
        store = WeightStore(client)
        manifest = store.require_manifest(digest)
        files = store.read_files(manifest)
        text, arch = Text(files), load_architecture(manifest.config)
        text_tasks = TextTasks.of(arch, files, text.token_id("mask_token"))
        return cls(text, generation_defaults(files), text_tasks)

    def check(
        self, task: str, options: Mapping[str, Any], ids: Sequence[int], target: Target
    ) -> Options:
        """What a request may ask for; raises BadRequest."""
        if task != GENERATE:
            return self.text_tasks.check(task, options, ids, target.slot_tokens)
        arch = self.text_tasks.arch
        if arch.encoder is not None and len(ids) > target.slot_tokens:
            raise BadRequest(
                f"the prompt has {len(ids)} tokens, the cluster's encoder reads "
                f"{target.slot_tokens}: shorten it, or split the model again with more "
                "--slot-tokens"
            )
        return check_options(
            options,
            len(ids) if arch.encoder is None else 1,
            Limits(target.slot_tokens, arch.vocab_size, target.num_slots, arch.encoder is not None),
            self.defaults,
            self.text.encode_inside,
        )

    def answering_in(self, options: Mapping[str, Any], language: str) -> dict[str, Any]:
        """The options with what makes the answer be in a language.

        That is the answer's first token, or what a decoder begins with where that is a language
        (mBART-25); some models (Marian) have it in the prompt.

        Raises:
            BadRequest: a language that is not known, or a contradiction.
        """
        token = self.text.answer_language(language)
        if token is None:
            return dict(options)
        own = self.defaults.always.get("decoder_start_token_id")
        name = "decoder_start_token_id" if self.text.languages.has(own) else "forced_bos_token_id"
        if options.get(name) not in (None, token):
            raise BadRequest(
                f"target_language {language!r}, {name} {options[name]!r:.40}: give one"
            )
        return {**options, name: token}

    @property
    def vocab_size(self) -> int:
        """Of prompts: an encoder may have a vocabulary of its own."""
        arch = self.text_tasks.arch
        return (arch.encoder or arch).vocab_size

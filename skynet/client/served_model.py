"""The model that a cluster runs, from its files in Redis: encodes and checks requests. Needs no
torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from redis import Redis

from skynet.client.arguments import Arguments
from skynet.errors import BadRequest
from skynet.models.registry import load_architecture
from skynet.request.generation_config import GenerationDefaults, generation_defaults
from skynet.request.input_encoder import InputEncoder
from skynet.request.option_table import BY_NAME, OPTIONS
from skynet.request.option_values import check_value, shown
from skynet.request.options import LANGUAGES, Limits, check_options, check_samples
from skynet.request.prompts import Prompt, check_token_ids, token_ids
from skynet.request.record import Options
from skynet.request.task_names import GENERATE
from skynet.request.text_tasks import TextTasks
from skynet.store.targets import Target
from skynet.store.weights import WeightStore
from skynet.tokenizer.chat_options import ChatOptions
from skynet.tokenizer.text import Text

FLAGS = {option.name: option.flag for option in OPTIONS}  # of `skynet generate`


@dataclass(frozen=True)
class ServedModel:
    """A staged model's tokenizer, default options and text tasks."""

    text: Text
    defaults: GenerationDefaults
    text_tasks: TextTasks

    @classmethod
    def staged(cls, client: Redis, digest: str) -> ServedModel:
        """The staged model of this digest.

        Raises:
            NoModel: it is not in Redis.
        """
        store = WeightStore(client)
        manifest = store.require_manifest(digest)
        files = store.read_files(manifest)
        text, arch = Text(files), load_architecture(manifest.config)
        return cls(text, generation_defaults(files), TextTasks.of(arch, files, text))

    def encode_all(
        self,
        prompts: Sequence[Prompt],
        arguments: Arguments,
        given: Mapping[str, Any],
        target: Target,
    ) -> list[tuple[list[int], Options]]:
        """`encode` of each prompt.

        Raises:
            BadRequest: also names which of several prompts cannot work.
        """
        self.text_tasks.check_task(arguments.task, arguments.n)
        encoded = []
        for index, prompt in enumerate(prompts):
            try:
                ids, options = self.encode(prompt, arguments.task, arguments.raw, given, target)
            except BadRequest as error:
                if len(prompts) == 1:
                    raise
                raise BadRequest(f"prompts[{index}]: {error}") from None
            if arguments.n is not None:
                check_samples(arguments.n, options)
            encoded.append((ids, options))
        return encoded

    def encode(
        self, prompt: Prompt, task: str, raw: bool, given: Mapping[str, Any], target: Target
    ) -> tuple[list[int], Options]:
        """A request's token ids and checked options.

        given: keyword arguments of `submit_prompt`; languages become a part of the prompt or a
            forced token.

        Raises:
            BadRequest: names the argument, its value and its limit.
        """
        options = dict(given)
        languages: dict[str, Any] = {}
        chat = None
        if task == GENERATE:
            languages = {
                name: check_value(BY_NAME[name], value)
                for name in LANGUAGES
                if (value := options.pop(name, None)) is not None
            }
            self._check_languages(languages, target.name)
            chat = ChatOptions.taken(options)
        if task != GENERATE:
            return self._encode_text(prompt, task, options, target)
        ids = token_ids(prompt, self.text, raw, chat=chat, **languages)
        if (language := languages.get("target_language")) is not None:
            options = self._answering_in(options, language)
        if len(ids) >= target.slot_tokens:  # refused, if at all, before each id is checked
            self._check(options, ids, target)
        ids = check_token_ids(ids, self.vocab_size)
        return ids, self._check(options, ids, target)

    def _encode_text(
        self, prompt: Prompt, task: str, options: dict[str, Any], target: Target
    ) -> tuple[list[int], Options]:
        text = self.input_encoder.encode(prompt, task, options)
        checked = self.text_tasks.check(task, options, text, target.slot_tokens)
        return check_token_ids(text.ids, self.vocab_size), checked

    @cached_property
    def input_encoder(self) -> InputEncoder:
        """How the inputs of text tasks become token ids."""
        return self.text_tasks.encoder(self.text)

    def _check_languages(self, languages: Mapping[str, Any], name: str) -> None:
        """Raise BadRequest if a language is asked for of the model `name`, which has none."""
        for option, code in languages.items():
            if not self.text.languages.codes:
                raise BadRequest(
                    f"{option} {code!r:.80} ({FLAGS[option]}): {name} has no language codes in "
                    "its tokenizer; leave it out"
                )

    def _check(self, options: Mapping[str, Any], ids: Sequence[int], target: Target) -> Options:
        if options.get("structured_outputs") is not None and not self.text.has_fast_tokenizer:
            raise BadRequest(
                f"structured_outputs: {target.name} has no tokenizer of the tokenizers library"
            )
        arch = self.text_tasks.arch
        has_encoder = arch.encoder is not None
        if has_encoder and len(ids) > target.slot_tokens:
            raise BadRequest(
                f"the prompt has {len(ids)} tokens, the cluster's encoder takes "
                f"{target.slot_tokens}: shorten it, or split the model again with more "
                "--slot-tokens"
            )
        return check_options(
            options,
            1 if has_encoder else len(ids),
            Limits(target.slot_tokens, arch.vocab_size, target.num_slots, has_encoder),
            self.defaults,
            self.text.encode_inside,
        )

    def _answering_in(self, options: Mapping[str, Any], language: str) -> dict[str, Any]:
        """The options with the token that makes the answer be in a language.

        It is the answer's first token, or the decoder's start token where that is a language code
        (mBART-25). Some models (Marian) have the language in the prompt: no token then.

        Raises:
            BadRequest: an unknown language, or another value of that option.
        """
        token = self.text.languages.of_answer(language)
        if token is None:
            return dict(options)
        start = self.defaults.always.get("decoder_start_token_id")
        name = "decoder_start_token_id" if self.text.languages.has(start) else "forced_bos_token_id"
        if options.get(name) not in (None, token):
            raise BadRequest(
                f"target_language {shown(language)}, {name} {shown(options[name])}: give one"
            )
        return {**options, name: token}

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads the prompt."""
        return self.text_tasks.arch.encoder is not None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of `submit_prompt` that the model does."""
        return self.text_tasks.tasks()

    @property
    def vocab_size(self) -> int:
        """The vocabulary of prompts: an encoder may have another one than the decoder."""
        arch = self.text_tasks.arch
        return (arch.encoder or arch).vocab_size

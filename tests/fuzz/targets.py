"""Every fuzz target, one row each."""

from __future__ import annotations

import redis

from tests.fuzz import files, messages, quantised, records
from tests.fuzz.target import Target

TARGETS = (
    Target("codec", messages.read_codec, messages.codec_seeds),
    Target("frame", messages.read_frame, messages.frame_seeds),
    Target("exchange", messages.read_exchange, messages.exchange_seeds),
    Target("replies", messages.read_replies, messages.reply_seeds, (redis.RedisError,)),
    Target("step", messages.read_step, messages.step_seeds, messages.STALE),
    Target("part", messages.read_part, messages.part_seeds),
    Target("span", messages.read_span, messages.span_seeds, messages.STALE),
    Target("finish", messages.read_finish, messages.finish_seeds),
    Target("chord", messages.read_chord, messages.chord_seeds),
    Target("record", records.read_record, records.record_seeds),
    Target("token", records.read_token, records.token_seeds),
    Target("plan", records.read_plan, records.plan_seeds),
    Target("target", records.read_target, records.target_seeds),
    Target("manifest", records.read_manifest, records.manifest_seeds),
    Target("member", records.read_member, records.member_seeds),
    Target("log", records.read_log, records.log_seeds),
    Target("config", files.read_config, files.config_seeds),
    Target("text-files", files.read_text_files, files.text_file_seeds),
    Target("chat", files.read_chat, files.chat_seeds),
    Target("defaults", files.read_defaults, files.defaults_seeds),
    Target("safetensors", files.read_safetensors, files.safetensors_seeds),
    Target("gguf-blocks", quantised.read_blocks, quantised.block_seeds),
    Target("quantised", quantised.read_quantised, quantised.quantised_seeds),
)
BY_NAME = {target.name: target for target in TARGETS}

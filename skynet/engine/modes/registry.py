"""Which mode answers a request: the only place that knows all of them."""

from __future__ import annotations

from skynet.engine.modes.beam_search import BeamSearch
from skynet.engine.modes.generation import Generation
from skynet.engine.modes.mode import Mode
from skynet.engine.modes.text_task import TextTaskMode
from skynet.engine.output import ModelInfo, Output
from skynet.engine.text_answers import TextAnswer
from skynet.wire.step import TextTask


def mode_of(output: Output, model: ModelInfo) -> Mode:
    """The mode that a request's options ask for."""
    options = output.options
    if options.read is not None:
        task = TextTask.of(options.read)
        return TextTaskMode(output, TextAnswer(task, model.arch, model.text.spell))
    if options.num_beams > 1:
        return BeamSearch(output, model.text)
    return Generation(output)

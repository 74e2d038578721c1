"""What the decoder of an encoder-decoder is shown of its target."""

from typing import Any

from torch import Tensor


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """The labels moved one place to the right, behind the token with which `generate` begins.

    Most families bring a method for it. M2M100 (and so NLLB), Blenderbot and others do it inside
    their forward pass only. Labels are [batch, time] with -100 where there is no loss.
    """
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels)
    settings, config = getattr(model, "generation_config", None), model.config
    begins = (
        getattr(settings, "decoder_start_token_id", None),
        getattr(config, "decoder_start_token_id", None),
        getattr(config, "bos_token_id", None),
    )
    start = next(i for i in begins if i is not None)
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    # Past the end any token would do: what follows from it has no loss.
    fill = config.pad_token_id if config.pad_token_id is not None else start
    return shifted.masked_fill(shifted < 0, fill)

"""Stage 1 in the processes that torchrun starts: each embeds its part of a split, on a GPU of its own; the first one speaks."""

import datetime
import os
from collections.abc import Sequence

from geo_embed.config import Config
from geo_embed.console import set_quiet
from geo_embed.data.variants import Variant
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import Extraction, combined, extract
from geo_embed.finetuning.team import is_lost_process, speaks

# One part may consist of copies, and the others' pictures be embedded for days: whoever is done waits for them.
_TIMEOUT = datetime.timedelta(days=60)


def extract_in_team(config: Config, todo: Sequence[tuple[str, Variant]]) -> list[Extraction]:
    """Embed this process's part of each (split, variant): the k-th of as many parts as there are processes.

    Returns:
        What all processes did together, in every one of them.

    Raises:
        GeoError: what `extract` raises; or another process has ended before its time.
    """
    import torch
    import torch.distributed as dist

    # Of several processes on a machine each decodes on its share of the cores.
    beside = int(os.environ["LOCAL_WORLD_SIZE"])
    workers = config.inference.workers or max(1, (os.cpu_count() or 1) // beside)
    inference = config.inference.model_copy(update={"workers": workers})
    config = config.model_copy(update={"inference": inference})
    if config.model.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not speaks():
        set_quiet(True)
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        rank, size = dist.get_rank(), dist.get_world_size()
        done = [extract(config, split, part=(rank + 1, size), variant=variant) for split, variant in todo]
        everyone: list[list[Extraction]] = [done] * size
        dist.all_gather_object(everyone, done)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise GeoError(
            "another process of this extraction has ended",
            where=f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}",
            hint="see what it said itself; what is done stays, and the same command goes on",
        ) from error
    finally:
        dist.destroy_process_group()
    return [combined(parts) for parts in zip(*everyone, strict=True)]

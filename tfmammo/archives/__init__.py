"""Files on disk -> records: one module per archive, each with `read(root, skipped)`."""

from collections.abc import Callable

from tfmammo.archives import cdd_cesm, inbreast, phantom
from tfmammo.record import Mammogram

ARCHIVES: dict[str, Callable[..., list[Mammogram]]] = {
    "cdd_cesm": cdd_cesm.read,
    "inbreast": inbreast.read,
    "phantom": phantom.read,
}

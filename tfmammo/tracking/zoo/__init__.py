"""Small trained networks that come with the package, named as models:/zoo/NAME."""

from tfmammo.tracking.zoo.entries import PREFIX as PREFIX
from tfmammo.tracking.zoo.entries import Entry as Entry
from tfmammo.tracking.zoo.entries import Result as Result
from tfmammo.tracking.zoo.entries import list_names as list_names
from tfmammo.tracking.zoo.entries import read_entry as read_entry
from tfmammo.tracking.zoo.entries import write_entry as write_entry
from tfmammo.tracking.zoo.fetching import fetch as fetch

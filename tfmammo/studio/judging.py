"""The reader study's tab: a reader gives a name, sees one case after the other, and
answers by click or key.

Nothing that reaches the browser tells which patch is real: pictures go out within the page, all as
PNGs of one size in pixels and bytes, without a name; which case a reader is at stays in the
server's memory. Buttons are private to the page: there is no API to ask.
"""

from __future__ import annotations

import base64
import logging
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from tfmammo.errors import ConfigError, DataError
from tfmammo.metrics import observer
from tfmammo.reader_study.answers import write_answers
from tfmammo.reader_study.cases import SCALE, Case
from tfmammo.reader_study.results import FEW, roc, table, write_results
from tfmammo.reader_study.session import ReaderStudy, reader_name

log = logging.getLogger(__name__)

# s after a case appears in which nothing is taken for an answer: it is the second half of a double
# click
PAUSE = 0.4
CHOICE = "Which one is real?"
RATING = "Is it real? From 1 (certainly synthetic) to 6 (certainly real)"
WELCOME = """## Real or synthetic?
First you see pairs of a real and a synthetic patch and choose the real one.
Then you see single patches, of which half are real, and rate each.
There is no time limit, and no way back. Every answer is saved at once.
You may stop and go on later under the same name.

Keys: left and right arrow, 1 to 6."""
# Only what is seen is pressed, and nothing while somebody types.
KEYS = """
if (!window.judging) document.addEventListener('keydown', window.judging = event => {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest?.('input, textarea, select')) return;
    const name = {ArrowLeft: 'left', ArrowRight: 'right'}[event.key] || event.key;
    const button = /^(left|right|[1-6])$/.test(name) && document.getElementById('answer-' + name);
    if (button && button.offsetParent !== null) { event.preventDefault(); button.click(); }
});
"""
STYLE = """
.pictures { display: flex; justify-content: center; gap: 2vmin; padding: 2vmin; background: black; }
.pictures img { width: min(66vh, 48%); aspect-ratio: 1; image-rendering: auto; }
"""

Place = tuple[str, Case, float]  # who is at which case, and since when (time.monotonic)
Updates = dict[Any, Any]


def tab(study: ReaderStudy) -> None:
    """Fill a tab of a gr.Blocks with the study.

    Args:
        study: Shared by all readers, in any number of threads.
    """
    _Tab(study)


class _Tab:
    """The tab's components, and what happens to them."""

    def __init__(self, study: ReaderStudy) -> None:
        self.study = study
        self.place = gr.State(None)
        with gr.Column() as self.welcome:
            gr.Markdown(WELCOME)
            self.name = gr.Textbox(label="Your name", max_length=64)
            start = gr.Button("Start or go on", variant="primary")
        with gr.Column(visible=False) as self.reading:
            self.progress = gr.Markdown()
            self.question = gr.Markdown()
            self.pictures = gr.HTML(css_template=STYLE, js_on_load=KEYS)
            with gr.Row() as self.sides:
                buttons = {
                    side: gr.Button(f"The {side} one", elem_id=f"answer-{side}")
                    for side in ("left", "right")
                }
            with gr.Row() as self.scale:
                buttons |= {
                    str(number): gr.Button(str(number), elem_id=f"answer-{number}", min_width=60)
                    for number in SCALE
                }
        self.closing = gr.Markdown(visible=False)
        self._add_results()
        outputs = [
            self.place,
            self.welcome,
            self.reading,
            self.progress,
            self.question,
            self.pictures,
            self.sides,
            self.scale,
        ]
        outputs += [self.closing, self.results, self.table, self.curves, self.files]
        gr.on(
            [start.click, self.name.submit],
            self._start,
            [self.name],
            outputs,
            api_visibility="private",
            show_progress="hidden",
        )
        for value, button in buttons.items():
            answer = partial(self._answer, value)
            button.click(
                answer,
                [self.place],
                outputs,
                api_visibility="private",
                show_progress="hidden",
                concurrency_limit=None,
            )

    def _add_results(self) -> None:
        with gr.Accordion("Results", visible=False, open=False) as self.results:
            self.table = gr.Dataframe(interactive=False, wrap=True)
            self.curves = gr.Plot(show_label=False)
            self.files = gr.Files(label="CSV files", interactive=False)

    def _start(self, name: str) -> Updates:
        try:
            return self._next(reader_name(name))
        except (DataError, ConfigError) as error:
            raise _told(error) from None

    def _answer(self, value: str, place: Place | None) -> Updates:
        """Keep an answer to the case that the page shows, and go on."""
        if place is None or time.monotonic() - place[2] < PAUSE or value not in place[1].allowed:
            return {self.place: place}
        reader, case, since = place
        try:
            self.study.answer(reader, case, value, time.monotonic() - since)
            return self._next(reader)
        except (DataError, ConfigError) as error:
            raise _told(error) from None

    def _next(self, reader: str) -> Updates:
        case = self.study.next(reader)
        if case is None:
            return self._end(reader)
        done = len(self.study.answers.answered(reader))
        count = len(self.study.cases(reader))
        return {
            self.place: (reader, case, time.monotonic()),
            self.welcome: gr.update(visible=False),
            self.reading: gr.update(visible=True),
            self.progress: f"Case {done + 1} of {count}",
            self.question: f"### {CHOICE if case.task == 'choice' else RATING}",
            self.pictures: _page(self.study.pictures(case)),
            self.sides: gr.update(visible=case.task == "choice"),
            self.scale: gr.update(visible=case.task == "rating"),
        }

    def _end(self, reader: str) -> Updates:
        thanks = "## Thank you\nAll your answers are saved."
        updates = {
            self.place: None,
            self.welcome: gr.update(visible=False),
            self.reading: gr.update(visible=False),
            self.pictures: "",
        }
        if self.study.config.show_results:
            thanks += f"\n\n{own_result(self.study, reader)}"
        if self.study.config.results:
            if self.study.answers.unfinished():
                thanks += (
                    "\n\nResults are shown once everybody who has begun is through; come "
                    "back under your name."
                )
            else:
                updates |= self._results()
        return updates | {self.closing: gr.update(value=thanks, visible=True)}

    def _results(self) -> Updates:
        study = self.study
        folder = Path(tempfile.mkdtemp(prefix="reader_study_"))
        found = study.results()
        shown = table(found, study.config.name)
        write_results(found, folder / "results.csv")
        write_answers(study.config, study.answers, folder / "answers.csv")
        body = [[cell.replace("\n", " ") for cell in row] for row in shown.body]
        return {
            self.results: gr.update(visible=True),
            self.table: gr.update(value=body, headers=shown.header, label=" ".join(shown.notes)),
            self.curves: roc(study.config, study.answers),
            self.files: [str(folder / name) for name in ("results.csv", "answers.csv")],
        }


def own_result(study: ReaderStudy, reader: str) -> str:
    """What a reader who is through is told, a line a task, all systems together."""
    own = [answer for answer in study.answers.all() if answer.reader == reader]
    lines = []
    right = [answer.score for answer in own if answer.case.task == "choice"]
    rated = [answer for answer in own if answer.case.task == "rating"]
    if right:
        lines.append(f"You chose the real one of {sum(right):.0f} of {len(right)} pairs.")
    if len({answer.case.truth for answer in rated}) == 2 and len(rated) >= 4:
        area = observer.ratings(
            [answer.case.truth == "real" for answer in rated], [answer.score for answer in rated]
        ).area
        lines.append(
            "Your ratings tell real from synthetic patches with an area under the ROC curve of "
            f"{area.value:.2f}; 0.5 is a guess."
        )
    return "\n\n".join(lines or [f"There are {FEW} for a result."])


def _page(pictures: Sequence[bytes]) -> str:
    """The pictures side by side, within the page."""
    encoded = [base64.b64encode(picture).decode() for picture in pictures]
    images = [f'<img alt="patch" src="data:image/png;base64,{text}">' for text in encoded]
    return f'<div class="pictures">{"".join(images)}</div>'


def _told(error: Exception) -> gr.Error:
    """An error as a note on the page; what is not the reader's matter goes to the log."""
    if isinstance(error, ConfigError):
        log.error("%s", error)
        return gr.Error(
            "This could not be saved or read. Try again, or tell whoever runs the study.",
            print_exception=False,
        )
    return gr.Error(str(error), print_exception=False)

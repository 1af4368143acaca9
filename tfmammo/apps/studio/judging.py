"""The reader study's tab: a reader enters a name and answers one case after the other.

Nothing that reaches the browser reveals which patch is real. Images are part of the page: nameless
PNGs of the same size in pixels and in bytes. The reader's current case stays on the server, and the
buttons' functions are not part of an API.
"""

from __future__ import annotations

import base64
import logging
import time
from functools import partial

import gradio as gr

from tfmammo.apps.reader_study.answers import write_answers
from tfmammo.apps.reader_study.cases import SCALE, Case
from tfmammo.apps.reader_study.results import (
    FEW,
    compute_results,
    plot_roc,
    results_table,
    write_results,
)
from tfmammo.apps.reader_study.session import ReaderStudy
from tfmammo.apps.studio.uploads import QUICK, Updates, new_folder
from tfmammo.errors import ConfigError, DataError
from tfmammo.metrics import observer

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.4  # without answers after a case appears: the second half of a double click
CHOICE = "Which one is real?"
RATING = "Is it real? From 1 (certainly synthetic) to 6 (certainly real)"
WELCOME = """## Real or synthetic?
First you see pairs of a real and a synthetic patch. Choose the real one.
Then you see single patches, half of which are real. Rate each of them.
There is no time limit, and you can't go back. Every answer is saved at once.
You may stop and continue later under the same name.

Keys: left and right arrow, 1 to 6."""
# A key presses only a visible button, and none while the reader types.
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

# the reader, the case that the page shows, and since when (time.monotonic)
Place = tuple[str, Case, float]


class StudyTab:
    """The tab's components and their events, on a gr.Blocks; all readers share the study."""

    def __init__(self, study: ReaderStudy) -> None:
        self.study = study
        self.place = gr.State(None)
        with gr.Column() as self.welcome:
            gr.Markdown(WELCOME)
            self.name = gr.Textbox(label="Your name", max_length=64)
            start = gr.Button("Start or continue", variant="primary")
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
        with gr.Accordion("Results", visible=False, open=False) as self.results:
            self.table = gr.Dataframe(interactive=False, wrap=True)
            self.curves = gr.Plot(show_label=False)
            self.files = gr.Files(label="CSV files", interactive=False)
        outputs = [self.place, self.welcome, self.reading, self.progress, self.question]
        outputs += [self.pictures, self.sides, self.scale, self.closing, self.results, self.table]
        outputs += [self.curves, self.files]
        entering = [start.click, self.name.submit]
        gr.on(entering, self._start, [self.name], outputs, **QUICK)
        for value, button in buttons.items():
            button.click(partial(self._answer, value), [self.place], outputs, **QUICK)

    def _start(self, name: str) -> Updates:
        try:
            return self._next(self.study.find_reader(name))
        except (DataError, ConfigError) as error:
            raise _to_page_error(error) from None

    def _answer(self, value: str, place: Place | None) -> Updates:
        """Store an answer to the case that the page shows, and show the next case."""
        if (
            place is None
            or time.monotonic() - place[2] < PAUSE_SECONDS
            or value not in place[1].allowed
        ):
            return {self.place: place}
        reader, case, since = place
        try:
            self.study.answer(reader, case, value, time.monotonic() - since)
            return self._next(reader)
        except (DataError, ConfigError) as error:
            raise _to_page_error(error) from None

    def _next(self, reader: str) -> Updates:
        case = self.study.next(reader)
        if case is None:
            return self._end(reader)
        done = len(self.study.answers.completed(reader))
        count = len(self.study.cases(reader))
        encoded = (base64.b64encode(picture).decode() for picture in self.study.images(case))
        images = (f'<img alt="patch" src="data:image/png;base64,{text}">' for text in encoded)
        return {
            self.place: (reader, case, time.monotonic()),
            self.welcome: gr.update(visible=False),
            self.reading: gr.update(visible=True),
            self.progress: f"Case {done + 1} of {count}",
            self.question: f"### {CHOICE if case.task == 'choice' else RATING}",
            self.pictures: f'<div class="pictures">{"".join(images)}</div>',
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
            thanks += f"\n\n{format_own_result(self.study, reader)}"
        if self.study.config.results:
            if self.study.answers.is_unfinished():
                thanks += (
                    "\n\nResults are shown when everybody who has begun has finished. Come back "
                    "under your name."
                )
            else:
                updates |= self._show_results()
        return updates | {self.closing: gr.update(value=thanks, visible=True)}

    def _show_results(self) -> Updates:
        study = self.study
        results = compute_results(study.config, study.answers)
        table = results_table(results, study.config.name)
        with new_folder("reader_study_") as folder:
            write_results(results, folder / "results.csv")
            write_answers(study.config, study.answers, folder / "answers.csv")
        body = [[cell.replace("\n", " ") for cell in row] for row in table.body]
        return {
            self.results: gr.update(visible=True),
            self.table: gr.update(value=body, headers=table.header, label=" ".join(table.notes)),
            self.curves: plot_roc(study.config, study.answers),
            self.files: [str(folder / name) for name in ("results.csv", "answers.csv")],
        }


def format_own_result(study: ReaderStudy, reader: str) -> str:
    """Describe a reader's own result, one line for each task, over all systems together."""
    answers = [answer for answer in study.answers.all() if answer.reader == reader]
    lines = []
    choices = [answer.score for answer in answers if answer.case.task == "choice"]
    rated = [answer for answer in answers if answer.case.task == "rating"]
    if choices:
        lines.append(f"You chose the real patch in {sum(choices):.0f} of {len(choices)} pairs.")
    if len({answer.case.truth for answer in rated}) == 2 and len(rated) >= 4:
        area = observer.estimate_ratings(
            [answer.case.truth == "real" for answer in rated], [answer.score for answer in rated]
        ).area
        lines.append(
            f"Your ratings separate real from synthetic patches with an AUC of {area.value:.2f}. "
            "Guessing gives 0.5."
        )
    return "\n\n".join(lines or [f"There are {FEW} for a result."])


def _to_page_error(error: Exception) -> gr.Error:
    """Make a note for the page; details for the operator are logged."""
    if isinstance(error, ConfigError):
        log.error("%s", error)
        return gr.Error(
            "This could not be saved or read. Try again, or tell the person who runs the study.",
            print_exception=False,
        )
    return gr.Error(str(error), print_exception=False)

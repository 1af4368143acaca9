"""Window and level of every mammogram on the page, as in a radiology viewer.

The browser maps intensities from level - window / 2 to level + window / 2 to black to white.
Nothing is sent, no file changes, and both images of a pair change alike. The images have 256
levels, so a narrow window shows steps.
"""

from __future__ import annotations

import gradio as gr

FILTER = "grey-window"
_CHANNELS = "".join(f'<feFunc{name} type="linear" slope="1" intercept="0"/>' for name in "RGB")
# A filter that is not displayed at all would make the pictures vanish.
SVG = (
    '<svg width="0" height="0" style="position: absolute" aria-hidden="true">'
    f'<filter id="{FILTER}" color-interpolation-filters="sRGB">'
    f"<feComponentTransfer>{_CHANNELS}</feComponentTransfer></filter></svg>"
)
STYLE = f"""
#mammogram img, #overlay img, #before-after img, #detail img, .pictures img {{
    filter: url(#{FILTER}); }}
"""
# grey -> (grey - (level - window / 2)) / window
APPLY = f"""
(window_, level) => {{
    const slope = 100 / window_;
    const intercept = 0.5 - level / window_;
    for (const map of document.querySelectorAll('#{FILTER} feComponentTransfer > *')) {{
        map.setAttribute('slope', slope);
        map.setAttribute('intercept', intercept);
    }}
}}
"""
# Else the arrow keys that answer a reader study would move the slider.
LEAVE = "() => document.activeElement?.blur()"


def add_controls() -> None:
    """Add the two sliders to a gr.Blocks, for all pictures of all its tabs."""
    gr.HTML(SVG, padding=False)
    with gr.Accordion("Window and level", open=False), gr.Row():
        window = gr.Slider(5, 200, 100, step=1, label="Window, % of the grey scale")
        level = gr.Slider(0, 100, 50, step=1, label="Level, % of the grey scale")
    for slider in (window, level):
        slider.change(None, [window, level], js=APPLY, api_visibility="private")
        slider.release(None, js=LEAVE, api_visibility="private")

"""Colours, fonts and small pieces of HTML. No outside request: system fonts only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
SCRIPT_NAMES = tuple(  # page.js first: the others add to what it does
    f"{name}.js" for name in ("page", "charts", "lists", "gallery", "browse", "form", "dataset", "slim", "prompts")
)
SCRIPTS = tuple(Path(__file__).with_name(name) for name in SCRIPT_NAMES)
FOLDER_FIELD, PATH_FIELD = "names-a-folder", "names-a-path"  # classes of fields that browse.js gives a button
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

CSS = """
.gradio-container, .gradio-container .fillable { max-width: 1500px !important; width: 100%; margin: 0 auto; }
.named { line-height: 1.6; } .named span { margin-right: .25rem; } .named span + span::before { content: "· "; }
.said { white-space: pre-line; margin: 0; }
.option-search { display: flex; gap: .6rem; align-items: center; flex-wrap: wrap; position: relative; }
.option-search label { font-weight: 600; }
.option-search input { flex: 1 1 260px; max-width: 520px; padding: .45rem .7rem; border-radius: 8px;
  border: 1px solid var(--input-border-color); background: var(--input-background-fill); color: inherit; }
.option-search ul { position: absolute; z-index: 60; top: 100%; left: 0; right: 0; max-width: 760px; margin: 4px 0 0 0;
  padding: 4px; list-style: none; max-height: 60vh; overflow: auto; border-radius: 8px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  box-shadow: 0 8px 24px rgb(0 0 0 / 25%); }
.option-search li { padding: .4rem .6rem; border-radius: 6px; cursor: pointer; }
.option-search li[aria-selected="true"], .option-search li:hover { background: var(--background-fill-secondary);
  outline: 2px solid var(--color-accent); outline-offset: -2px; }
.option-search li small { display: block; color: var(--body-text-color-subdued); }
.option-search li code { font-size: .85em; color: var(--body-text-color-subdued); margin-left: .4rem; }
a[data-option] { text-decoration: underline; color: inherit; padding: 0 !important; }
.wrap-inner { min-height: 38px; }
.found { animation: found 3s ease-out; }
@keyframes found { from, 40% { outline: 3px solid #d97706; outline-offset: -2px; }
  to { outline: 3px solid transparent; } }
@media (prefers-reduced-motion: reduce) { .found { animation: none; outline: 3px solid #d97706; } }
#presets { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 12px; gap: 8px;
  background: var(--block-background-fill); }
#presets .form, #presets .block { border-width: 0 !important; box-shadow: none; padding: 0; background: none; }
#preset-about:not(:has(p)) { display: none; }
#preset-picker li { flex-wrap: wrap; }
#preset-picker li::before { flex: 0 0 100%; font-size: .8rem; font-weight: 600; padding: .2rem 0; }
#page-title { font-size: 1.35rem; font-weight: 650; }
#page-title small { font-weight: 400; font-size: .85rem; color: var(--body-text-color-subdued); margin-left: .5rem; }
#run-bar { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 12px;
  background: var(--block-background-fill); gap: 10px; }
#run-bar .form, #run-bar .block { border-width: 0 !important; box-shadow: none; padding: 0; background: none; }
#run-bar .run-buttons, .beside { align-items: end; }
.beside > button { min-width: max-content !important; padding-left: .9rem; padding-right: .9rem; }
#run-bar button, #presets button { white-space: nowrap; font-size: .95rem; padding-left: .7rem; padding-right: .7rem; }
@media (max-width: 640px) {
  #page-title small { display: none; }
  #run-bar { padding: 6px 8px; gap: 4px; } #run-bar .run-buttons { gap: 6px; flex-wrap: wrap; align-items: center; }
  #run-bar .run-buttons > * { min-width: max-content !important; flex: 1 1 auto; width: auto !important; }
  #run-bar .run-buttons > :has(input) { flex: 1 1 70%; min-width: 70% !important; order: -2; }
  #run-bar .run-buttons > #run-more-place { flex: 0 0 auto; order: -1; }
  #run-bar .run-buttons [data-testid="block-info"] { display: none; }
  #run-bar button { min-height: 34px; padding: .2rem .4rem; font-size: .8rem; }
  #run-bar:not(.all) :is(#save-now, #sample-now, #kill-training, #print-command, #add-to-queue, #form-run),
  #run-bar:not(.all) > #run-machine { display: none; }
  #run-bar.all .run-buttons > button { flex: 1 1 40%; }
  #run-more { display: inline-block !important; }
  #run-bar:not(.all) :is(#run-notice, #form-message) { max-height: 3.4rem; overflow: auto !important; }
  #run-bar .note { padding: .2rem .6rem; font-size: .9rem; line-height: 1.35; }
  #run-bar .run-line { gap: 0 .7rem; font-size: .9rem; }
}
#run-more { display: none; } @media (min-width: 641px) { #run-more-place { display: none; } }
#form-message:not(:has(.note)), #run-notice:not(:has(.note)), #resume-where:not(:has(.note)),
#run-hint:not(:has(.note)) { display: none; }
.run-line { display: flex; flex-wrap: wrap; gap: .35rem 1rem; align-items: center; line-height: 1.5; }
.run-line b { font-weight: 600; }
.badge { border-radius: 999px; padding: .1rem .65rem; font-weight: 600; font-size: .9rem; color: #fff;
  background: #4b5563; }
.badge.running, .badge.starting { background: #1d4ed8; }
.badge.stopping, .badge.interrupted, .badge.stopped { background: #92400e; }
.badge.finished { background: #166534; }
.badge.failed, .badge.refused { background: #b91c1c; }
.done { display: flex; gap: .6rem; align-items: center; font-size: .85rem; font-variant-numeric: tabular-nums; }
.done span { min-width: 3.2em; text-align: right; }
.bar { flex: 1; height: 10px; border-radius: 5px; background: var(--border-color-primary); overflow: hidden; }
.bar > div { height: 100%; background: #1d4ed8; border-radius: 5px; transition: width .4s; }
.dark .bar > div { background: #60a5fa; }
.note { border-left: 4px solid #4b5563; background: var(--background-fill-secondary); border-radius: 6px;
  padding: .6rem .9rem; line-height: 1.5; overflow-wrap: anywhere; }
.note.bad { border-color: #b91c1c; } .note.warn { border-color: #b45309; } .note.good { border-color: #15803d; }
.note ul { margin: .3rem 0 0 1.1rem; list-style: disc; } .note p { margin: 0 0 .3rem 0; }
.note pre { white-space: pre-wrap; font-size: .85rem; max-height: 16rem; overflow: auto; margin: .4rem 0 0 0; }
.facts { display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(max(140px, 15%), 1fr)); }
.facts div { background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: 8px; padding: .5rem .75rem; overflow-wrap: anywhere; }
.facts span { display: block; font-size: .8rem; color: var(--body-text-color-subdued); }
table.plain { width: 100%; border-collapse: collapse; margin-top: .6rem; }
table.plain, table.plain thead, table.plain tr, table.plain th, table.plain td { border: 0 !important; }
table.plain th, table.plain td { text-align: left; padding: .35rem .6rem; vertical-align: top;
  border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.scroll table.plain { min-width: 720px; }
.scroll table.plain th, .scroll table.plain td { overflow-wrap: break-word; }
.scroll table.plain td:first-child { white-space: nowrap; }
.beside .block span, .beside .block div { overflow-wrap: anywhere; }
table.samples, table.samples tr, table.samples th, table.samples td { border: 0 !important; }
table.samples th, table.samples td { padding: .25rem .4rem; text-align: left; vertical-align: top; }
table.samples thead th { max-width: 240px; min-width: 120px; font-weight: 500; overflow-wrap: anywhere; }
table.samples tbody th { white-space: nowrap; }
table.samples tr.resumed td { border-top: 2px dashed #d97706 !important; font-size: .85rem; }
button.picture { padding: 0; border: 2px solid transparent; border-radius: 6px; cursor: zoom-in; background: none; }
button.picture:hover, button.picture:focus-visible { border-color: #1d4ed8; }
button.picture img { display: block; max-width: 220px; width: 100%; min-width: 96px; border-radius: 4px; }
.samples-scroll { max-height: 75vh; overflow: auto; }
table.samples thead th { position: sticky; top: 0; z-index: 2; background: var(--body-background-fill); }
table.samples tbody th { position: sticky; left: 0; z-index: 1; background: var(--body-background-fill); }
table.samples thead th:first-child { left: 0; z-index: 3; }
button.picture img.missing { min-height: 96px; font-size: .8rem; }
.comparison { position: relative; --left: 50%; max-width: 640px; }
.comparison img { display: block; width: 100%; border-radius: 6px; min-height: 64px; }
.comparison img.over { position: absolute; inset: 0 0 auto 0; clip-path: inset(0 0 0 var(--left)); }
.comparison::after { content: ""; position: absolute; top: 0; bottom: 2.4rem; left: var(--left); width: 2px;
  background: #fff; box-shadow: 0 0 3px #000; }
.comparison input { width: 100%; height: 2rem; margin: .2rem 0; accent-color: #1d4ed8; cursor: ew-resize; }
dialog#lightbox { max-width: 96vw; max-height: 96vh; padding: 12px; border-radius: 10px; margin: auto;
  background: var(--background-fill-primary); color: var(--body-text-color);
  border: 1px solid var(--border-color-primary); }
dialog#lightbox::backdrop { background: rgb(0 0 0 / 75%); }
dialog#lightbox img { display: block; max-width: 92vw; max-height: 78vh; min-width: min(320px, 80vw);
  object-fit: contain; margin: 0 auto; image-rendering: auto; }
dialog#lightbox p { margin: .5rem 0; max-width: 92vw; overflow-wrap: anywhere; }
.option-grid .block > :is(label, .container):has(> .info-text) { display: flex; flex-direction: column; }
.option-grid .block .info-text { order: 2; margin: .25rem 0 0 0; }
.option-grid .block.changed { box-shadow: inset 3px 0 0 #1d4ed8; }
.at-field { margin-top: .25rem; }
.at-field p { color: #b91c1c; font-size: .85rem; margin: 0; overflow-wrap: anywhere; }
.dark .at-field p { color: #fca5a5; }
.simple .option-advanced:not(.wanted) { display: none !important; }
figure.rate { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem .8rem; margin: .3rem 0 0 0; }
figure.rate svg { width: 240px; height: 44px; } figure.rate figcaption { font-size: .85rem; }
figure.rate polyline { fill: none; stroke: #3b82f6; stroke-width: 2; vector-effect: non-scaling-stroke; }
#form-beside { align-items: flex-start; flex-wrap: nowrap; gap: 16px; }
#sections { font-size: .9rem; } #sections ul { list-style: none; margin: 0; padding: 0; }
#sections a { display: block; text-align: left; padding: .25rem .6rem; color: inherit;
  border-left: 3px solid transparent;
  text-decoration: none; } #sections a:hover { text-decoration: underline; }
#sections a[aria-current] { border-left-color: #1d4ed8; font-weight: 600; }
#slim-bar { position: fixed; top: 0; left: 0; right: 0; z-index: 70; display: flex; align-items: center; gap: .6rem;
  padding: .3rem 1rem; background: var(--background-fill-primary); border-bottom: 1px solid var(--border-color-primary);
  box-shadow: 0 2px 8px rgb(0 0 0 / 15%); } #slim-bar[hidden] { display: none; }
#slim-bar b { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#slim-bar span { margin-right: auto; white-space: nowrap; font-variant-numeric: tabular-nums; }
.option-section { scroll-margin-top: 48px; }
#sections-place { position: sticky; top: 56px; flex: 0 0 150px !important; min-width: 150px !important; }
@media (max-width: 1023px) { #sections-place { display: none; } }
.option-mode { margin-left: auto; white-space: nowrap; }
.names-a-folder, .names-a-path { position: relative; }
button.small.browse { position: absolute; top: 2px; right: 4px; z-index: var(--layer-5, 50); margin: 0;
  padding: 0 .5rem; }
dialog.choosing { width: min(680px, 96vw); max-height: 90vh; padding: 14px; border-radius: 10px; margin: auto;
  background: var(--background-fill-primary); color: var(--body-text-color);
  border: 1px solid var(--border-color-primary); }
dialog.choosing::backdrop { background: rgb(0 0 0 / 60%); }
dialog.choosing h2 { font-size: 1.1rem; font-weight: 650; margin: 0 0 .4rem 0; }
dialog.choosing nav { display: flex; flex-wrap: wrap; align-items: center; gap: .1rem .2rem; margin: .2rem 0; }
dialog.choosing nav button { border: 0; background: none; color: inherit; cursor: pointer; padding: .25rem .3rem;
  text-decoration: underline; overflow-wrap: anywhere; text-align: left; }
dialog.choosing nav button[aria-current] { text-decoration: none; font-weight: 600; }
dialog.choosing input { width: 100%; padding: .4rem .6rem; border-radius: 6px; color: inherit;
  border: 1px solid var(--input-border-color); background: var(--input-background-fill); }
dialog.choosing ul { list-style: none; margin: .5rem 0; padding: 0; height: 46vh; overflow: auto; border-radius: 6px;
  border: 1px solid var(--border-color-primary); }
dialog.choosing li > * { display: flex; width: 100%; gap: .6rem; justify-content: space-between; text-align: left;
  padding: .4rem .7rem; border: 0; background: none; color: inherit; overflow-wrap: anywhere; }
dialog.choosing li > button { cursor: pointer; }
dialog.choosing li > button:hover { background: var(--background-fill-secondary); }
dialog.choosing li > button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: -2px; }
dialog.choosing li > span, dialog.choosing small { color: var(--body-text-color-subdued); white-space: nowrap; }
dialog.choosing footer { display: flex; flex-wrap: wrap; gap: .5rem; justify-content: flex-end; align-items: center; }
dialog.choosing footer p { flex: 1 1 240px; margin: 0; font-size: .9rem; overflow-wrap: anywhere; }
button.small.as-rows { margin-top: .3rem; }
#prompt-rows .rows { max-height: 60vh; overflow: auto; }
#prompt-rows fieldset { display: flex; flex-wrap: wrap; gap: .4rem .6rem; align-items: end; padding: .5rem;
  margin: 0 0 .6rem 0; border: 1px solid var(--border-color-primary); border-radius: 6px; }
#prompt-rows legend { font-size: .85rem; padding: 0 .3rem; }
#prompt-rows label { font-size: .85rem; flex: 1 1 70px; } #prompt-rows label.text { flex-basis: 100%; }
.live:empty { display: none; }
.chart { min-height: 300px; width: 100%; }
.chart-controls { align-items: end; } .chart-controls .block { padding-top: 4px; padding-bottom: 4px; }
#run-differences:not(:has(.note, table)) { display: none; }
#run-machine { min-height: 1.3rem; } #run-machine .machine { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem;
  font-size: .85rem; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
#run-machine b { font-weight: 600; }
@media (max-width: 640px) { .beside { flex-wrap: wrap !important; } .beside > * { min-width: 100% !important; } }
a.small { text-decoration: none; display: inline-block; }
button.small, a.small { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .1rem .6rem;
  font-size: .85rem; background: var(--button-secondary-background-fill); color: var(--body-text-color);
  cursor: pointer; margin: .1rem .3rem .1rem 0; white-space: nowrap; }
button.small:hover, a.small:hover { border-color: #1d4ed8; }
button.small[aria-pressed="true"] { background: #1d4ed8; border-color: #1d4ed8; color: #fff; }
.mark { font-weight: 600; } .mark.good { color: #166534; } .mark.bad { color: #b91c1c; } .mark.warn { color: #92400e; }
.dark .mark.good { color: #86efac; } .dark .mark.bad { color: #fca5a5; } .dark .mark.warn { color: #fcd34d; }
p.aside { margin: .5rem 0 0 0; }
.option-grid > .form, .option-grid { display: grid !important; gap: 10px;
  grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); border: none !important; background: none; }
.option-grid > .form { grid-column: 1 / -1; }
.option-grid .wide { grid-column: span 2; }
.option-grid > .form > .block, .option-grid > .block { padding: 4px 8px; }
.html-container { padding: 0 !important; }
[data-testid="status-tracker"].hide { display: none !important; }
@media (max-width: 640px) {
  .option-grid .wide { grid-column: span 1; }
  .beside > .block, .beside > .html-container { flex: 1 1 100%; }
}
#run-log { max-height: 400px; overflow: auto !important; }
#run-log pre { font-family: var(--font-mono); font-size: .82rem; line-height: 1.45; margin: 0; padding: .6rem .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.js-plotly-plot .plotly text { fill: var(--body-text-color) !important; }
"""


def theme() -> gr.themes.Base:
    """Gradio's default with enough contrast to read, in light and dark."""
    return gr.themes.Default(primary_hue="blue", font=SANS, font_mono=MONO).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        input_placeholder_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover_dark="#991b1b",
        button_cancel_text_color="white",
        button_cancel_text_color_dark="white",
    )


class Html(str):
    """Text that is HTML already; all other text is escaped."""


def escaped(text: str) -> Html:
    return text if isinstance(text, Html) else Html(escape(text))


def to_option(name: str, text: str) -> Html:
    """A link that opens the Train tab at an option; page.js follows it."""
    return Html(f'<a href="#opt-{escape(name)}" data-option="{escape(name)}">{escape(text)}</a>')


def script(options: list[dict[str, Any]]) -> str:
    """The page's own scripts, with the options that they search."""
    data = json.dumps(options).replace("</", "<\\/")
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    return f"<script>const rekindleOptions = {data};\n{scripts}</script>"


def note(text: str, items: Iterable[str] = (), *, kind: str = "", log: str = "") -> str:
    """A framed message: a sentence, perhaps a list, perhaps an excerpt of a log. What is not Html is escaped."""
    listed = "".join(f"<li>{escaped(item)}</li>" for item in items)
    body = f"<p>{escaped(text)}</p>" + (f"<ul>{listed}</ul>" if listed else "")
    body += f"<pre>{escape(log)}</pre>" if log else ""
    role = "alert" if kind == "bad" else "status"
    return f'<div class="note {kind}" role="{role}">{body}</div>'


def line(text: str, items: Iterable[str] = ()) -> str:
    """A sentence and what it names, following one another."""
    listed = "".join(f"<span>{escaped(item)}</span>" for item in items)
    return f'<div class="named" role="status">{escaped(text)} {listed}</div>'


def paragraph(text: str) -> str:
    """Text with its line breaks."""
    return f'<p class="said">{escaped(text)}</p>'


def log(text: str) -> str:
    """The text of a log, as it is."""
    return f"<pre>{escape(text) or 'What the trainer prints appears here.'}</pre>"


def progress(name: str, share: float) -> str:
    """A bar that is full by `share`, 0 to 1, and the share in words. 100 % is the end and nothing before it."""
    percent = 100 * min(1.0, max(0.0, share))
    return (
        f'<div class="done"><div class="bar" role="progressbar" aria-label="{escape(name)}" '
        f'aria-valuenow="{percent:.0f}" aria-valuemin="0" aria-valuemax="100"><div style="width: {percent:.2f}%"></div>'
        f"</div><span>{math.floor(percent)} %</span></div>"
    )


def table(headings: Iterable[str], rows: Iterable[Iterable[str]], *, name: str = "Table") -> Html:
    """A table that scrolls sideways where the page is narrow; cells are escaped unless they are Html."""
    head = "".join(f'<th scope="col">{escaped(heading)}</th>' for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return Html(
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">'
        f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def button(words: str, action: str, value: str, *, title: str = "", of: str = "", pressed: bool = False) -> Html:
    """A small button inside HTML; see wiring.TELL_CLICKS. `of`: what it acts on, where several have the same words."""
    name = f' aria-label="{escape(f"{words}: {of}")}"' if of else ""
    return Html(
        f'<button type="button" class="small" data-action="{escape(action)}" data-value="{escape(value)}" '
        f'title="{escape(title or words)}"{name} aria-pressed="{str(pressed).lower()}">{escape(words)}</button>'
    )


def link(words: str, address: str, *, download: str = "", title: str = "") -> Html:
    """A link that looks like a small button. `download`: the name that the browser keeps what is there under."""
    kept = f' download="{escape(download)}"' if download else ""
    text = escape(title or words)
    return Html(
        f'<a class="small" href="{escape(address)}"{kept} title="{text}" aria-label="{text}">{escape(words)}</a>'
    )


def badge(words: str, kind: str) -> Html:
    """How a run stands, as a coloured lozenge."""
    return Html(f'<span class="badge {escape(kind)}">{escape(words)}</span>')


def mark(words: str, kind: str = "") -> Html:
    """A word or two that stand out. `kind`: good, bad, warn, or nothing."""
    return Html(f'<span class="mark {kind}">{escape(words)}</span>')


def live(words: str = "") -> str:
    """A place that charts.js fills and keeps up to date, and which Gradio leaves alone."""
    return f'<div class="live">{words}</div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Small labelled values, side by side."""
    cells = "".join(f"<div><span>{escape(name)}</span>{escape(value)}</div>" for name, value in pairs)
    return f'<div class="facts">{cells}</div>'

"""A player: video or filmstrip, score curves with a playhead, events to click; for a report's page and for notebooks.

- one piece of HTML, escaped, and one small script; as a page it has a strict policy: only this script and style run, known by
  their hashes, and nothing is asked of a network
- in a notebook it is a widget (anywidget, an extra), whose Python side knows the second shown; without it a static frame
- what cannot be played is a filmstrip with the same playhead
"""

import base64
import hashlib
import html
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from vau_lib.data import records, video
from vau_lib.workspace import artifacts
from vau_lib.workspace.gallery import text

THUMB_SIDE, THUMBS = 192, 24  # pixels of the longer side of a picture in the page; pictures of a filmstrip
CLIP_SIDE, CLIP_FPS, CLIP_CRF = 480, 15.0, 30  # the video in the page: smaller, fewer frames, coarser
MOST_FILLED = 36_000  # pictures of that video that only fill gaps: ten hours with one a second
BESIDE = "report.mp4"  # a video that is too large for the page
NOTEBOOK_MB = 4.0  # largest video in a notebook's output
POINTS = 1500  # of a drawn curve: each is the highest of its stretch
WIDE, LEFT, RIGHT, HIGH = 1000, 46, 992, 190  # of the curve's drawing
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
STYLE = """
.vau { --ink: #22303c; --quiet: #5b6873; --line: #dbe1e6; color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  color-scheme: light; background: #fff; overflow-wrap: anywhere; }
.vau video { display: block; max-width: 100%; width: 560px; background: #000; border-radius: 4px; }
.vau .strip { display: flex; gap: 3px; overflow-x: auto; margin: 8px 0; } .vau .strip button { flex: 0 0 auto; }
.vau .strip img { height: 54px; display: block; } .vau.unplayable video { display: none; }
.vau.unplayable .strip img { height: 108px; }
.vau button { font: inherit; color: inherit; background: none; border: 2px solid transparent; padding: 0; cursor: pointer;
  text-align: left; border-radius: 4px; }
.vau button.now { border-color: #f0b429; } .vau button:focus-visible { outline: 2px solid #0072b2; }
.vau svg.plot { width: 100%; height: auto; display: block; cursor: crosshair; touch-action: none; }
.vau svg.key { vertical-align: middle; } .vau svg text { font: 12px system-ui, sans-serif; fill: #5b6873; }
.vau .legend { margin: 4px 0; } .vau .legend span { margin-right: 16px; }
.vau .clock { color: var(--quiet); font-variant-numeric: tabular-nums; }
.vau .events { list-style: none; padding: 0; margin: 8px 0; } .vau .events li { border-top: 1px solid var(--line); padding: 6px 0; }
.vau .events button { display: flex; gap: 12px; align-items: flex-start; width: 100%; } .vau .events img { width: 150px; }
.vau .when { font-weight: 600; } .vau .answer { display: block; max-height: 12em; overflow-y: auto; }
.vau .name { color: var(--quiet); } .vau .verdict { border-radius: 4px; padding: 0 6px; background: #eef1f4; }
.vau .verdict.anomaly { background: #fbe3d6; } .vau .verdict.normal { background: #dff0ea; }
"""
PAGE_STYLE = """
body { margin: 0 auto; max-width: 1060px; padding: 20px; font: 15px/1.5 system-ui, sans-serif; color: #22303c; background: #fff;
  overflow-wrap: anywhere; } p { margin: 4px 0; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 26px 0 4px; }
.quiet { color: #5b6873; } .warning { border-left: 5px solid #d55e00; background: #fdf3ee; padding: 6px 14px; margin: 10px 0; }
dl { display: grid; grid-template-columns: 230px 1fr; gap: 2px 12px; font-size: 14px; } dt { color: #5b6873; } dd { margin: 0; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid #dbe1e6; vertical-align: top; }
"""
PLAY = """
function play(root, tell) {
  const video = root.querySelector('video'), clock = root.querySelector('.clock');
  const begin = Number(root.dataset.begin), end = Number(root.dataset.end);
  const left = Number(root.dataset.left), right = Number(root.dataset.right);
  const wide = Number(root.dataset.wide), heads = root.querySelectorAll('.head');
  const marks = [...root.querySelectorAll('button[data-at]')];
  const strip = marks.filter(mark => mark.parentNode.className === 'strip');
  let shown = 0;
  const move = second => {
    shown = Math.min(Math.max(second, begin), end);
    const x = left + (shown - begin) / (end - begin) * (right - left);
    heads.forEach(head => { head.setAttribute('x1', x); head.setAttribute('x2', x); });
    clock.textContent = shown.toFixed(1) + ' s';
    let last = -1;
    strip.forEach((mark, place) => { if (Number(mark.dataset.at) <= shown + 1e-3) last = place; });
    strip.forEach((mark, place) => mark.classList.toggle('now', place === last));
    marks.filter(mark => mark.dataset.until).forEach(mark => mark.classList.toggle('now',
      shown >= Number(mark.dataset.from) && shown < Number(mark.dataset.until)));
  };
  const go = second => { move(second); if (video) video.currentTime = shown; if (tell) tell(shown); };
  const place = event => { const box = event.currentTarget.getBoundingClientRect();
    return begin + ((event.clientX - box.left) / box.width * wide - left) / (right - left) * (end - begin); };
  root.querySelectorAll('svg.plot').forEach(svg => {
    svg.addEventListener('pointerdown', event => go(place(event)));
    svg.addEventListener('pointermove', event => { if (event.buttons) go(place(event)); });
  });
  marks.forEach(mark => mark.addEventListener('click', () => go(Number(mark.dataset.at))));
  if (video) {
    const follow = () => { move(video.currentTime); if (!video.paused && !video.ended) requestAnimationFrame(follow); };
    video.addEventListener('play', follow);
    video.addEventListener('seeked', () => move(video.currentTime));
    video.addEventListener('timeupdate', () => move(video.currentTime));
    video.addEventListener('error', () => root.classList.add('unplayable'));
    if (video.error) root.classList.add('unplayable');
  } else root.classList.add('unplayable');
  move(begin);
  root.dataset.ready = 'yes';
  return go;
}
"""
SCRIPT = PLAY + "document.querySelectorAll('.vau').forEach(root => play(root));\n"
WIDGET = (
    PLAY
    + """
export default { render({ model, el }) {
  el.innerHTML = model.get('content');
  const go = play(el.querySelector('.vau'), second => { model.set('second', second); model.save_changes(); });
  model.on('change:second', () => { go(model.get('second')); });
} };
"""
)
VERDICTS = {1: ("anomaly", "judged anomalous"), 0: ("normal", "judged normal"), None: ("", "no verdict in the answer")}
KEY = '<svg class="key" width="22" height="6" aria-hidden="true"><path d="M0 3H22" stroke="{}" stroke-width="3"/></svg>'
Curves = Mapping[str, np.ndarray]  # name -> rows of (start_s, end_s, value), (T, 3)


def policy(script: str, style: str) -> str:
    """Return the Content-Security-Policy under which this script and this style run, and nothing else."""
    scripts, styles = (f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in (script, style))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; media-src data: 'self' file:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def document(title: str, body: str) -> str:
    """Return a whole page around `body`, which is escaped already."""
    style = STYLE + PAGE_STYLE
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy(SCRIPT, style))}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n<script>{SCRIPT}</script>\n"
        "</body>\n</html>\n"
    )


# Pictures and video


def jpeg(frame: np.ndarray, side: int, quality: int = 80) -> bytes:
    """Return a frame uint8 (H, W, 3), RGB, as JPEG with at most `side` pixels a side."""
    scale = side / max(frame.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(scale * length)) for length in frame.shape[1::-1])
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def picture(data: bytes) -> np.ndarray:
    """Return a JPEG as RGB uint8 (H, W, 3)."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def small_clip(source: str | Path, target: Path) -> None:
    """Write a video as H.264 that browsers play: at most CLIP_SIDE pixels a side, CLIP_FPS frames a second, no sound.

    VideoError for a clock that would need too many pictures between those there are: a damaged one claims centuries.
    """
    info = video.probe(source)
    fps = min(CLIP_FPS, max(info.fps, 1.0))
    if info.duration_s * fps > info.num_frames + MOST_FILLED:
        raise video.VideoError(f"{video.source_name(source)}: {info.num_frames} frames in {info.duration_s:,.0f} s")
    video.write_video(target, _at_rate(source, fps), fps=fps, crf=CLIP_CRF)


def _at_rate(source: str | Path, fps: float) -> Iterator[np.ndarray]:
    """Yield what is on screen at k / fps, smaller, H and W even."""
    count, before = 0, None
    for moment, frame in video.live(source):
        while before is not None and count / fps < moment - 1e-6:
            yield before
            count += 1
        scale = min(1.0, CLIP_SIDE / max(frame.shape[:2]))
        size = tuple(max(2, round(scale * side / 2) * 2) for side in frame.shape[1::-1])
        before = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    if before is not None:
        yield before


def media(source: str | Path, folder: Path | None, *, limit_mb: float = 8.0) -> str:
    """Return the address of a small copy of a video: data, or BESIDE in `folder` where it is larger; "" where it has neither."""
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / BESIDE
        try:
            small_clip(source, target)
        except (ValueError, OSError):  # pictures that change size, a codec that is missing: the filmstrip stays
            return ""
        data = target.read_bytes()
    if len(data) <= limit_mb * 2**20:
        return "data:video/mp4;base64," + base64.b64encode(data).decode()
    if folder is None:
        return ""
    with artifacts.replacing(folder / BESIDE) as temporary:
        temporary.write_bytes(data)
    return BESIDE


# The piece with the playhead


def player(
    curves: Curves, *, end_s: float, media: str = "", strip: Sequence[tuple[float, bytes]] = (), truth: Sequence[Mapping] = (),
    events: Sequence[Mapping] = (), pictures: Mapping[int, bytes] | None = None, threshold: float | None = None,
    below: Curves | None = None, begin_s: float = 0.0,
) -> str:  # fmt: skip
    """Return video, filmstrip, curves and events as one escaped piece of HTML, which `PLAY` brings to life.

    Args:
        curves: name -> (start_s, end_s, value) rows, on one axis from 0 to 1 or the largest value.
        end_s: length of the stream.
        media: address of the video; "" without one.
        strip: (second, JPEG) along the stream.
        truth: known events: start_s, end_s, label.
        events: found events: number, start_s, end_s, peak_s, peak, known_s, answer.
        pictures: JPEG by event number.
        threshold: drawn as a line.
        below: curves of another unit, drawn on an axis of their own, where 1 is marked.
        begin_s: where the curves begin; a long live stream shows its last hour.
    """
    end_s = max(float(end_s), begin_s + 1e-3)
    span = (begin_s, end_s)
    film = "".join(_mark(second, f'<img alt="" src="{_data(shot)}">') for second, shot in strip)
    drawings, legend = [_drawing(curves, span, truth, events, threshold, COLOURS)], _legend(curves, COLOURS)
    if below:
        drawings.append(_drawing(below, span, truth, (), 1.0, COLOURS[1:]))
        legend += _legend(below, COLOURS[1:])
    shown = f'<video controls preload="auto" muted playsinline src="{html.escape(media)}"></video>' if media else ""
    items = "".join(_known(span) for span in truth)
    items += "".join(_event(event, (pictures or {}).get(event.get("number"))) for event in events)
    return (
        f'<div class="vau" data-begin="{begin_s:.3f}" data-end="{end_s:.3f}" data-left="{LEFT}" data-right="{RIGHT}" '
        f'data-wide="{WIDE}">\n{shown}\n'
        f'<div class="strip">{film}</div>\n<p class="legend">{"".join(legend)}<span class="clock">0.0 s</span></p>\n'
        + "\n".join(drawings)
        + f'\n<ul class="events">{items}</ul>\n</div>'
    )


def _data(shot: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(shot).decode()


def _mark(second: float, inside: str, span: tuple[float, float] | None = None) -> str:
    until = f' data-from="{span[0]:.3f}" data-until="{span[1]:.3f}"' if span else ""
    return f'<button type="button" data-at="{second:.3f}"{until} title="{second:.1f} s">{inside}</button>'


def _legend(curves: Curves, colours: Sequence[str]) -> list[str]:
    return [f"<span>{KEY.format(colour)} {text(name)}</span>" for name, colour in zip(curves, colours, strict=False)]


def _known(span: Mapping) -> str:
    start, end = span["start_s"], span["end_s"]
    inside = f'<span><span class="when">known: {text(span.get("label") or "event", 60)}</span> {start:.1f} to {end:.1f} s</span>'
    return f"<li>{_mark(start, inside, (start, end))}</li>"


def _event(event: Mapping, shot: bytes | None) -> str:
    answer = event.get("answer") or {}
    kind, words = VERDICTS.get(answer.get("anomaly"), VERDICTS[None])
    if answer.get("error"):
        kind, words = "", f"no answer: {answer['error']}"
    sure = f" (confidence {answer['confidence']:.2f})" if isinstance(answer.get("confidence"), float) else ""
    label = f"{words}{sure}{': ' + str(answer['kind']) if answer.get('kind') else ''}"
    answers = "".join(
        f'<span class="answer"><span class="name">{text(name)}:</span> {text(words, 20_000)}</span>'
        for name, words in (answer.get("texts") or {}).items()
    )
    facts = f"{event['start_s']:.1f} to {event['end_s']:.1f} s"
    peak = f"highest {event['peak']:.3f} at {event['peak_s']:.1f} s, known at {event['known_s']:.1f} s"
    title = f'<span class="when">{int(event["number"])} · {facts}</span> <span class="name">{peak}</span>'
    verdict = f' <span class="verdict {kind}">{text(label, 600)}</span>' if answer else ""
    image = f'<img alt="" src="{_data(shot)}">' if shot else ""
    inside = f"{image}<span>{title}{verdict}{answers}</span>"
    return f"<li>{_mark(event['peak_s'], inside, (event['start_s'], event['end_s']))}</li>"


def _drawing(
    curves: Curves,
    shown_s: tuple[float, float],
    truth: Sequence[Mapping],
    events: Sequence[Mapping],
    threshold: float | None,
    colours: Sequence[str],
) -> str:
    highest = max([1.0, *(float(rows[:, 2].max()) for rows in curves.values() if len(rows))])
    top, bottom, (begin_s, end_s) = 18, HIGH - 24, shown_s
    truth, events = ([span for span in part if span["end_s"] > begin_s] for part in (truth, events))

    def x(second: float) -> float:
        return LEFT + min(max((second - begin_s) / (end_s - begin_s), 0.0), 1.0) * (RIGHT - LEFT)

    def y(value: float) -> float:
        return bottom - value / highest * (bottom - top)

    def band(span: Mapping, colour: str, opacity: float) -> str:
        wide = max(x(span["end_s"]) - x(span["start_s"]), 1.5)
        box = f'x="{x(span["start_s"]):.1f}" y="{top}" width="{wide:.1f}" height="{bottom - top}"'
        return f'<rect {box} fill="{colour}" opacity="{opacity}"/>'

    parts = [band(span, "#D55E00", 0.14) for span in events] + [band(span, "#F0B429", 0.35) for span in truth]
    for span in truth:
        middle = (x(span["start_s"]) + x(span["end_s"])) / 2
        parts.append(f'<text x="{middle:.1f}" y="13" text-anchor="middle">known: {text(span.get("label") or "event", 60)}</text>')
    for value in (0.0, highest):
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for second in ticks(end_s, begin_s):
        parts.append(f'<text x="{x(second):.1f}" y="{HIGH - 6}" text-anchor="middle">{moment(second, end_s)}</text>')
        parts.append(f'<path d="M{x(second):.1f} {bottom}v4" stroke="#8A97A3"/>')
    parts.append(f'<path d="M{LEFT} {bottom}H{RIGHT}" stroke="#8A97A3"/>')
    if threshold is not None and 0 <= threshold <= highest:
        parts.append(f'<path d="M{LEFT} {y(threshold):.1f}H{RIGHT}" stroke="#5B6873" stroke-dasharray="5 4"/>')
    for rows, colour in zip(curves.values(), colours, strict=False):
        steps = "".join(f"{'ML'[place > 0]}{x(a):.1f} {y(v):.1f}H{x(b):.1f}" for place, (a, b, v) in enumerate(thinned(rows)))
        parts.append(f'<path class="curve" d="{steps}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    parts.append(f'<line class="head" x1="{LEFT}" x2="{LEFT}" y1="{top - 4}" y2="{bottom}" stroke="#22303C" stroke-width="1.6"/>')
    label = text(", ".join(curves))
    return f'<svg class="plot" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{label} over time">{"".join(parts)}</svg>'


def thinned(rows: np.ndarray) -> np.ndarray:
    """Return (start_s, end_s, value) rows (T, 3) as at most POINTS, each the highest value of its stretch."""
    if len(rows) <= POINTS:
        return rows
    first = np.linspace(0, len(rows), POINTS, endpoint=False).astype(int)
    last = np.append(first[1:], len(rows)) - 1
    return np.stack([rows[first, 0], rows[last, 1], np.maximum.reduceat(rows[:, 2], first)], 1)


def ticks(end_s: float, begin_s: float = 0.0) -> list[float]:
    """Return round seconds along the time axis, about eight."""
    steps, length = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600), end_s - begin_s
    step = next((step for step in steps if length / step <= 9), 7200 * np.ceil(length / 7200 / 9))  # a damaged clock: years
    return [float(second) for second in np.arange(np.ceil(begin_s / step) * step, end_s + 1e-9, step)]


def moment(second: float, end_s: float) -> str:
    """Return a moment as seconds, minutes:seconds or hours:minutes, by the length of the stream."""
    if end_s <= 120:
        return f"{second:g} s"
    whole = round(second)
    return f"{whole // 60}:{whole % 60:02d}" if end_s < 7200 else f"{whole // 3600}:{whole // 60 % 60:02d} h"


# In a notebook


def framed(piece: str, *, high: int = 800) -> str:
    """Return a player's piece as a frame of its own: its script cannot reach the notebook's page."""
    inside = html.escape(document("player", piece), quote=True)
    return f'<iframe sandbox="allow-scripts" width="100%" height="{high}" frameborder="0" srcdoc="{inside}"></iframe>'


class Static:
    """A player without anywidget: a frame that a notebook shows."""

    def __init__(self, content: str):
        self.content = content

    def _repr_html_(self) -> str:
        return framed(self.content)


def show(
    path: str | Path, curves: Mapping[str, np.ndarray], *, step_s: float, events: Sequence[records.Span] = (),
    threshold: float | None = None, below: bool = False, widget: bool | None = None,
):  # fmt: skip
    """Return a player of a video for a notebook: a widget where anywidget is installed, else a static frame.

    Args:
        path: the video, or a folder of images.
        curves: name -> values (T,), one for each `step_s` of the video.
        step_s: seconds of a value.
        events: known events, which can be clicked.
        threshold: drawn as a line.
        below: the curves' unit is no score in [0, 1].
        widget: True needs anywidget (ImportError), False does without; None takes what there is.
    """
    length = video.probe(path).duration_s
    starts = {name: np.arange(len(values)) * step_s for name, values in curves.items()}
    rows = {name: np.stack([starts[name], starts[name] + step_s, values], 1) for name, values in curves.items()}
    index = video.sample_index(video.probe(path).num_frames, THUMBS)
    shots = [jpeg(frame, THUMB_SIDE, 75) for frame in video.read_frames(path, np.unique(index), reader="pyav")]
    strip = list(zip(video.frame_times(path)[np.unique(index)].tolist(), shots, strict=True))
    truth = [dict(start_s=span.start_s, end_s=span.end_s, label=span.label) for span in events]
    address = media(path, None, limit_mb=NOTEBOOK_MB)
    piece = player(rows, end_s=length, media=address, strip=strip, truth=truth, threshold=1.0 if below else threshold)
    if widget is not False:
        try:
            return _widget(piece)
        except ImportError:
            if widget:
                raise
    return Static(piece)


def _widget(piece: str):
    """Return the piece as a widget; its `second` is the moment shown, and can be set."""
    import anywidget
    import traitlets

    class Player(anywidget.AnyWidget):
        _esm, _css = WIDGET, STYLE
        content = traitlets.Unicode().tag(sync=True)
        second = traitlets.Float(0.0).tag(sync=True)

        def _repr_mimebundle_(self, **options):  # a page without a kernel shows the frame
            data, metadata = super()._repr_mimebundle_(**options)
            return data | {"text/html": framed(self.content)}, metadata

    return Player(content=piece)

"""The page of an analysed video, and the page of a folder of them; texts of video and model are escaped."""

import html
from collections.abc import Mapping, Sequence

from vau_lib.plots.player import Curves, document, player
from vau_lib.workspace.gallery import text


def page(
    content: Mapping,
    curves: Curves,
    below: Curves,
    *,
    media: str,
    strip: Sequence[tuple[float, bytes]],
    pictures: Mapping[int, bytes],
) -> str:
    """Return the report of one analysed stream as a page; `content` is what report.json holds."""
    cost, detector, measured = content["cost"], content["detector"], content["measured"]
    begin_s = min((float(rows[0, 0]) for rows in curves.values() if len(rows)), default=0.0)
    piece = player(
        curves, begin_s=begin_s, end_s=cost["seconds"], media=media, strip=strip, truth=content["truth"], events=content["events"],
        pictures=pictures, threshold=content["threshold"], below=below or None,
    )  # fmt: skip
    warnings = "".join(f'<p class="warning">{text(line, 600)}</p>' for line in (*content["marks"], *content["notes"]))
    extra = (
        "Below the score are two curves that need no training: 1 is the most unusual moment of the video's own beginning."
        * bool(below)
    )
    found = f"{cost['alarms']} event{'s' * (cost['alarms'] != 1)} at or above {content['threshold']:.6g} in {cost['seconds']:.1f} s"
    facts = {
        "detector": ", ".join(filter(None, (detector["system"], detector["folder"], detector["kind"]))),
        "trained on": detector["trained_on"],
        "threshold": f"{content['threshold']:.6g}: {content['threshold_from']}", "language model": content["language_model"],
        "time": f"{cost['seconds']:.1f} s of video in {cost['wall_s']:.1f} s",
        "language model ran": f"{cost['language_model_s']:.1f} s, {cost['language_model_share_of_time']:.1%} of the time",
        "alarms an hour": f"{cost['alarms_per_hour']:.1f}",
    }  # fmt: skip
    facts |= {key.replace("_", " "): f"{cost[key]:.2f}" for key in cost if key.endswith(("p50_s", "p99_s"))}
    if cost.get("judged"):
        facts["judged"] = ", ".join(f"{count} {name}" for name, count in cost["judged"].items())
    facts |= {key.replace("_", " "): value for key, value in content["settings"].items() if value not in (None, "")}
    title, so_far = text(content["source"], 200), " so far (live)" if content["rolling"] else ""
    note = "A score holds over its snippet and is known when its clip is over. Click a curve, a picture or an event to go there."
    return document(
        f"{content['source']}: {found}",
        f'<h1>{title}</h1>\n<p>{text(found)}{so_far}</p>\n{warnings}\n{piece}\n<p class="quiet">{extra} {note}</p>\n'
        f"{_measured(measured)}\n<h2>How</h2>\n{_facts(facts)}",
    )


def _measured(measured: Mapping | None) -> str:
    if not measured:
        return ""
    delays = ", ".join("missed" if delay is None else f"{delay:.1f} s" for delay in measured["delays_s"])
    rate = measured["false_alarms_per_hour"]
    facts = {
        "known events": measured["events"], "detected": measured["detected"], "known after their start": delays,
        "events beside them": f"{measured['false_alarms']} in {60 * measured['normal_hours']:.1f} minutes"
        + ("" if rate is None else f", {rate:.1f} an hour"),
    }  # fmt: skip
    for name, area in measured["row_auc"].items():
        facts[f"row AUC in this one video, {name}"] = f"{area:.3f}"
    return f"<h2>Against the known events (amber)</h2>\n{_facts(facts)}"


def _facts(facts: Mapping) -> str:
    return "<dl>" + "".join(f"<dt>{text(key)}</dt><dd>{text(value, 600)}</dd>" for key, value in facts.items()) + "</dl>"


def index(rows: Sequence[Mapping]) -> str:
    """Return the page of a folder of videos: a row each, with its report, or why there is none."""
    lines = []
    for row in rows:
        content = row["content"]
        if content is None:
            lines.append(f"<tr><td>{text(row['id'], 200)}</td><td colspan=4>{text(row['error'], 400)}</td></tr>")
            continue
        highest = max((event["peak"] for event in content["events"]), default=None)
        judged = (content["cost"].get("judged") or {}).get("anomaly", "")
        notes = "; ".join((*content["marks"], *content["notes"]))
        link = f'<a href="{html.escape(row["report"])}">{text(row["id"], 200)}</a>'
        lines.append(
            f"<tr><td>{link}</td><td>{content['cost']['seconds']:.1f} s</td>"
            f"<td>{len(content['events'])}</td><td>{'' if highest is None else f'{highest:.3f}'}</td><td>{judged}</td>"
            f'<td class="quiet">{text(notes, 400)}</td></tr>'
        )
    head = "<tr><th>video</th><th>length</th><th>events</th><th>highest score</th><th>judged anomalous</th><th></th></tr>"
    broken = sum(row["content"] is None for row in rows)
    title = f"{len(rows)} videos, {broken} not readable" if broken else f"{len(rows)} videos"
    return document(title, f"<h1>{title}</h1>\n<table>{head}\n{chr(10).join(lines)}</table>")

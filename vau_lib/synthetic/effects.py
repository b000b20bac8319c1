"""Weather, lens and camera effects on rendered frames: rain, snow, fog, an old lens, a swaying mast, insects.

- effects change finished frames; masks change only with a swaying mast, by whole pixels, as the picture does
- "clear", "wall" and "none" change nothing
"""

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

Shot = tuple[np.ndarray, np.ndarray]  # colours uint8 (H, W, 3), actor numbers uint8 (H, W)


def apply(shots: Iterator[Shot], scenario) -> Iterator[Shot]:
    """Yield frames and masks of a `scenarios.Scenario` with the effects of its weather, distractor and camera."""
    rng = np.random.default_rng([scenario.seed, 31])
    effects = (scenario.weather, scenario.distractor, scenario.camera)
    layers = [LAYERS[name](scenario, rng) for name in effects if name in LAYERS]
    for number, (colours, ids) in enumerate(shots):
        if layers:
            picture = colours.astype(np.float32)
            for layer in layers:
                picture, ids = layer(picture, ids, number / scenario.fps)
            colours = np.clip(picture, 0, 255).astype(np.uint8)
        yield colours, ids


def _rain(scenario, rng):
    tall, wide = scenario.height, scenario.width
    sheet = (rng.random((2 * tall, wide)) > 0.996).astype(np.float32)
    streaks = sum(np.roll(sheet, (step, step // 4), (0, 1)) for step in range(tall // 16)) * 42

    def layer(picture, ids, t):
        fallen = int(t * tall * 2.6) % (2 * tall)
        return picture * 0.86 + 12 + np.roll(streaks, fallen, 0)[:tall, :, None], ids

    return layer


def _snow(scenario, rng):
    tall, wide = scenario.height, scenario.width
    sheets = [gaussian_filter((rng.random((2 * tall, wide)) > 0.9985).astype(np.float32), size) * size**2 for size in (0.7, 1.2)]

    def layer(picture, ids, t):
        for sheet, speed in zip(sheets, (0.35, 0.6), strict=True):
            moved = np.roll(sheet, (int(t * tall * speed), int(6 * np.sin(1.3 * t))), (0, 1))[:tall, :, None]
            picture = picture + (250 - picture) * np.clip(5 * moved, 0, 1)
        return picture * 0.94 + 10, ids

    return layer


def _fog(scenario, rng):
    # what is high in the picture is far away
    far = np.linspace(0.72, 0.22, scenario.height, dtype=np.float32)[:, None, None]
    noise = rng.normal(0, 1, (scenario.height, 2 * scenario.width)).astype(np.float32)
    clouds = gaussian_filter(noise, scenario.height / 7, mode="wrap")
    clouds *= 0.12 / max(clouds.std(), 1e-6)

    def layer(picture, ids, t):
        drift = np.roll(clouds, int(9 * t), 1)[:, : scenario.width, None]
        thick = np.clip(far + drift, 0, 0.85)
        return picture * (1 - thick) + thick * (0.55 * picture.mean() + 90), ids

    return layer


def _insects(scenario, rng):
    places, speeds = rng.uniform(0, 1, (2, 2)), rng.uniform(-0.9, 0.9, (2, 2))
    y, x = np.mgrid[: scenario.height, : scenario.width]

    def layer(picture, ids, t):
        for number, (place, speed) in enumerate(zip(places, speeds, strict=True)):
            top, left = (place + speed * t + 0.05 * np.sin((7 + number) * t)) % 1 * (scenario.height, scenario.width)
            blur = np.exp(-((y - top) ** 2 + (x - left) ** 2) / (0.0009 * scenario.height**2))[..., None]
            picture = picture * (1 - 0.55 * blur) + 0.55 * blur * (35 + 150 * number)
        return picture, ids

    return layer


def _lamp_flicker(scenario, rng):
    y, x = np.mgrid[: scenario.height, : scenario.width]
    top, left = scenario.height * rng.uniform(0.15, 0.5), scenario.width * rng.uniform(0.2, 0.8)
    pool = np.exp(-((y - top) ** 2 + (x - left) ** 2) / (0.09 * scenario.height**2))[..., None]
    times = rng.random(4096) < 0.45

    def layer(picture, ids, t):
        return picture * (1 + pool * (0.28 if times[int(12 * t) % len(times)] else -0.12)), ids

    return layer


def _swaying_tree(scenario, rng):
    tall, wide = scenario.height // 2, scenario.width // 4
    shape = gaussian_filter(rng.random((scenario.height, scenario.width)), 3)
    right = rng.random() < 0.5
    crown = np.zeros((scenario.height, scenario.width), np.float32)
    crown[:tall, -wide:] = shape[:tall, -wide:] > np.quantile(shape, 0.55)
    crown = gaussian_filter(crown if right else crown[:, ::-1], 0.8)[..., None]
    green = np.array([44, 62, 40], np.float32) if scenario.lighting != "night" else np.array([70, 70, 70], np.float32)

    def layer(picture, ids, t):
        moved = np.roll(crown, int(round(3.2 * np.sin(2.1 * t) + 1.6 * np.sin(5.3 * t))), 1)
        return picture * (1 - 0.8 * moved) + 0.8 * moved * green, ids

    return layer


def _old_lens(scenario, rng):
    y, x = np.mgrid[: scenario.height, : scenario.width]
    radius = ((y / scenario.height - 0.5) ** 2 + (x / scenario.width - 0.5) ** 2)[..., None]
    dark = np.clip(1.08 - 1.5 * radius, 0.25, 1.1).astype(np.float32)

    def layer(picture, ids, t):
        return gaussian_filter(picture, (0.9, 0.9, 0)) * dark, ids

    return layer


def _mast(scenario, rng):
    phase = rng.uniform(0, 6.28, 2)

    def layer(picture, ids, t):
        down, right = int(round(1.4 * np.sin(2.2 * t + phase[0]))), int(round(2.6 * np.sin(1.5 * t + phase[1])))
        rows = (np.arange(scenario.height) - down).clip(0, scenario.height - 1)
        columns = (np.arange(scenario.width) - right).clip(0, scenario.width - 1)
        return picture[rows][:, columns], ids[rows][:, columns]

    return layer


LAYERS = {
    "rain": _rain, "snow": _snow, "fog": _fog, "insects": _insects, "lamp_flicker": _lamp_flicker,
    "swaying_tree": _swaying_tree, "old_lens": _old_lens, "mast": _mast,
}  # fmt: skip

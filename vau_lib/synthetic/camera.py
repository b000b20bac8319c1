"""The renderer: frames and masks of a place and its actors, with the light, exposure and noise of a cheap camera.

- what does not move is painted once per world; a frame costs the box around its actors and shadows, and the sensor's noise
- painted at twice the size and averaged down, so edges are soft; the mask is the same painting, not averaged
- the recorder's clock is stamped last, over everything, and is no part of any mask
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from vau_lib.synthetic import motion, objects, people, scenes
from vau_lib.synthetic.near_places import PLACES

Box = tuple[int, int, int, int]  # left, top, right, bottom, half-open
EXPOSURE = [round(255 * (level / 255) ** 0.78) for level in range(256)] * 3  # a camera opens up for a dark place


@dataclass(frozen=True)
class Light:
    """Light of a time of day: metres of shadow per metre of height, its strength, sky, gain per colour, noise."""

    sun: tuple[float, float]
    shadow: float
    sky: tuple[int, int, int]
    gain: tuple[float, float, float]
    noise: float


LIGHTS = {
    "day": Light((0.75, 0.3), 0.5, (196, 212, 230), (1.0, 0.98, 0.93), 2.0),
    "overcast": Light((0.12, 0.1), 0.36, (196, 200, 204), (0.84, 0.87, 0.89), 2.6),
    "dusk": Light((0.3, 0.35), 0.38, (150, 132, 140), (0.62, 0.53, 0.47), 4.0),
    "night": Light((0.05, 0.5), 0.45, (60, 60, 60), (0.62, 0.62, 0.62), 5.5),  # infrared: gray, lit from the camera
}


@dataclass(frozen=True)
class StaticScene:
    """All that does not change during a video, painted once. In RGBA the fourth band holds the actors' numbers, here none."""

    layout: scenes.Layout
    camera: scenes.Camera
    light: Light
    lit: Image.Image  # canvas size, RGBA
    still: Image.Image  # the same with what hides actors in front: a frame in which nobody is
    shaded: Image.Image  # the same place without direct light, RGBA
    cutouts: tuple[tuple[float, tuple[int, int], Image.Image, Image.Image], ...]  # z, corner, colours in RGBA, outline
    gain: Image.Image  # video size: how much light reaches each pixel
    shake: float  # canvas pixels


HOURS = {"day": 11, "overcast": 9, "dusk": 17, "night": 22}  # on the recorder's clock, and four hours on


def build(scenario) -> StaticScene:
    """Choose the camera of a `scenarios.Scenario` and paint all that stands still; kept for the next video of its world."""
    return _built(scenario.scene, scenario.world_seed, scenario.lighting, scenario.height, scenario.width)


@lru_cache(maxsize=1)
def _built(scene: str, world_seed: int, lighting: str, high: int, wide: int) -> StaticScene:
    rng = np.random.default_rng([world_seed, 4])
    layout, light, indoors = PLACES[scene](rng), LIGHTS[lighting], scene in scenes.ROOFED
    if indoors and lighting != "night":
        light = replace(light, sun=(0.08, 0.12), gain=tuple(0.5 + 0.45 * part for part in light.gain))
    width, height = (scenes.SUPERSAMPLING * side + 2 * scenes.MARGIN for side in (wide, high))
    camera = scenes.Camera(
        layout.height_m + rng.uniform(-0.3, 0.4), layout.pitch + rng.uniform(-0.02, 0.03),
        rng.uniform(-0.09, 0.09) if indoors else rng.uniform(-0.16, 0.16),
        1.22 * high * scenes.SUPERSAMPLING, width, height, int(rng.choice([-1, 1])),
    )  # fmt: skip
    pixels, hit = scenes.cast(camera, layout, rng, light.sky)
    lit = Image.fromarray(pixels)
    furniture = []
    for kind, x, z, number in sorted(layout.props, key=lambda prop: -prop[2]):
        sketch = scenes.Sketch(camera, actor=255)
        objects.prop(sketch, kind, x, z, number)
        furniture.append((z, sketch.strokes))
    shadow, dark = _shadow(camera, light, [stroke for _, strokes in furniture for stroke in strokes])
    if dark:
        lit.paste(lit.crop(dark).point(lambda level: level * (1 - light.shadow)), dark, shadow)
    cutouts = []
    for number, block in enumerate(layout.blocks):
        if block.free:
            cutouts.append(_cutout(block.low[2], lit, Image.fromarray((hit == number).astype(np.uint8) * 255)))
    for z, strokes in furniture:
        outline = Image.new("L", (width, height))
        scenes.paint(camera, strokes, lit, ids=outline)
        cutouts.append(_cutout(z, lit, outline))
    still, shaded = lit.copy(), lit.point(lambda level: level * (1 - light.shadow))
    for _, place, image, outline in sorted(filter(None, cutouts), key=lambda cutout: -cutout[0]):
        still.paste(image, place, outline)
    cutouts = tuple((z, place, _numbered(image), outline) for z, place, image, outline in filter(None, cutouts))
    shake = 0.0 if indoors else float(rng.choice([0.0, 0.7, 1.4]))
    return StaticScene(
        layout,
        camera,
        light,
        _numbered(lit),
        still,
        _numbered(shaded),
        cutouts,
        _gain(lighting, high, wide, layout, camera, light),
        shake,
    )


def _numbered(image: Image.Image) -> Image.Image:
    """Return a picture with a fourth band for the numbers of actors, 0 everywhere."""
    image = image.copy()
    image.putalpha(0)
    return image


def _cutout(z, image, outline):
    box = outline.getbbox()
    return box and (z, box[:2], image.crop(box), outline.crop(box))


def _shadow(camera, light, strokes) -> tuple[Image.Image | None, Box | None]:
    """Return the soft shadow of everything sketched, 255 in full shadow, and its box on the canvas; None, None for none."""
    image, blur = Image.new("L", (camera.width // 2, camera.height // 2)), camera.height / 480
    scenes.paint(camera, strokes, image, sun=light.sun, ink=255, scale=0.5)
    if not (box := image.getbbox()):
        return None, None
    around = int(blur) + 6  # what blur and enlargement reach
    box = [max(0, side - around) for side in box[:2]] + [min(image.size[i], box[i + 2] + around) for i in (0, 1)]
    image = image.crop(box).filter(ImageFilter.BoxBlur(blur))
    return image.resize((2 * image.width, 2 * image.height)), tuple(2 * side for side in box)


def _around(*boxes: Box | None) -> Box:
    """Return the least box around those there are; (0, 0, 0, 0) for none."""
    sides = np.array([box for box in boxes if box] or [(0, 0, 0, 0)])
    return (*sides[:, :2].min(0).tolist(), *sides[:, 2:].max(0).tolist())


def _overlap(one: Box, other: Box) -> bool:
    return all(one[i] < other[i + 2] and other[i] < one[i + 2] for i in (0, 1))


def _gain(lighting, height, width, layout, camera, light) -> Image.Image:
    """Light that reaches the sensor: darker corners, pools under lamps at dusk, an infrared lamp's spot at night."""
    down, right = np.mgrid[:height, :width].astype(float)
    radius = ((right / width - 0.5) ** 2 + (down / height - 0.5) ** 2) * 2
    gain = np.array(light.gain) * (1 - 0.3 * radius)[..., None]
    if lighting == "night":
        gain *= (0.45 + 0.95 * np.exp(-3.2 * radius))[..., None]
    if lighting == "dusk":
        for kind, x, z, _ in layout.props:
            places, scale = camera.project(np.array([[x + 0.8, 0.0, z]]))
            if kind == "lamp" and scale[0] > 0:
                across, along = ((right, down)[i] - places[0, i] / scenes.SUPERSAMPLING for i in (0, 1))
                reach = scale[0] / scenes.SUPERSAMPLING * 3.0
                pool = np.exp(-((across / reach) ** 2) - (along / reach / 0.6) ** 2)
                gain += np.array([0.5, 0.42, 0.28]) * pool[..., None]
    return Image.fromarray(np.clip(gain * 255, 0, 255).astype(np.uint8))


def shoot(scenario, cast: motion.Cast | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Render frame by frame: yield colours uint8 (H, W, 3) and actor numbers uint8 (H, W), 0 where there is none."""
    place = build(scenario)
    cast = cast or motion.direct(scenario, place.layout)
    grain, clock, stills = _grain(scenario, place.light.noise), _Clock(scenario), {}
    rng = np.random.default_rng([scenario.seed, 5])
    wobble, night = rng.uniform(0, 6.28, 4), scenario.lighting == "night"
    wide, tall = scenario.width * scenes.SUPERSAMPLING, scenario.height * scenes.SUPERSAMPLING
    for number in range(scenario.num_frames):
        t = number / scenario.fps
        colours, ids, glow, changed = _expose(place, cast, t, lit=scenario.lighting in ("dusk", "night"))
        sway = place.shake * np.array([np.sin(5.1 * t + wobble[0]) + np.sin(13 * t + wobble[1]), np.sin(7.3 * t + wobble[2])])
        left, top = (int(round(scenes.MARGIN + part)) for part in np.clip(sway, -scenes.MARGIN, scenes.MARGIN))
        if (left, top) not in stills:  # the place without actors
            stills[left, top] = _develop(
                place, place.still, None, (left, top), (0, 0, scenario.width, scenario.height), night=night
            )
        picture = stills[left, top].copy()
        if part := _pixels(changed, (left, top), picture.size):
            picture.paste(_develop(place, colours, glow, (left, top), part, night=night), part[:2])
        down, right = rng.integers(0, 32, 2)
        noise = grain[down : down + scenario.height, right : right + scenario.width]
        picture = clock.stamp(Image.fromarray(cv2.add(np.asarray(picture), noise, dtype=cv2.CV_8U)), t)
        mask = np.asarray(ids)[top + 1 : top + tall : scenes.SUPERSAMPLING, left + 1 : left + wide : scenes.SUPERSAMPLING]
        yield np.asarray(picture), mask.copy()


def _pixels(box: Box, corner: tuple[int, int], size: tuple[int, int]) -> Box | None:
    """Return which pixels of the video a box of the canvas touches, the picture's corner at `corner`; None for none of them."""
    low = [max(0, (box[i] - corner[i]) // scenes.SUPERSAMPLING) for i in (0, 1)]
    high = [min(size[i], -((corner[i] - box[i + 2]) // scenes.SUPERSAMPLING)) for i in (0, 1)]
    return (*low, *high) if high[0] > low[0] and high[1] > low[1] else None


def _develop(place: StaticScene, colours: Image.Image, glow, corner: tuple[int, int], part: Box, *, night: bool) -> Image.Image:
    """Return what the sensor makes of a part, in pixels of the video, of a canvas whose picture begins at `corner`."""
    box = tuple(corner[i % 2] + side * scenes.SUPERSAMPLING for i, side in enumerate(part))
    colours, size = colours.crop(box).convert("RGB"), colours.size
    picture = ImageChops.multiply(colours.reduce(scenes.SUPERSAMPLING), place.gain.crop(part)).point(EXPOSURE)
    if glow:
        light = glow.resize(size).crop(box).reduce(scenes.SUPERSAMPLING)
        picture = ImageChops.screen(picture, Image.merge("RGB", [light] * 3))
    return picture.convert("L").convert("RGB") if night else picture


def _grain(scenario, level) -> np.ndarray:
    """Sensor noise to cut every frame's from: gray mostly, a little coloured by day."""
    rng = np.random.default_rng([scenario.seed, 6])
    shape = (scenario.height + 32, scenario.width + 32)
    noise = rng.normal(0, level, (*shape, 1)) + (scenario.lighting != "night") * rng.normal(0, level * 0.5, (*shape, 3))
    return np.rint(np.broadcast_to(noise, (*shape, 3))).astype(np.int16)


class _Clock:
    """The recorder's clock: camera, date and time."""

    def __init__(self, scenario):
        rng = np.random.default_rng([scenario.world_seed, 7])
        day, hour = rng.integers(365), HOURS[scenario.lighting] + rng.uniform(0, 4)
        self.start = np.datetime64("2026-01-01T00:00:00") + int(day * 86400 + hour * 3600)
        self.camera, self.font = f"CAM {rng.integers(1, 17):02d}", ImageFont.load_default(max(7, scenario.height // 18))
        self.text, self.inks = "", []

    def stamp(self, image, t):
        text = f"{self.camera}  {str(self.start + int(t)).replace('T', ' ')}"
        if text != self.text:  # once a second
            place, outline = (image.width // 40, image.height // 60), max(1, image.height // 240)
            self.text, self.inks = text, []
            for colour, stroke in (((24, 24, 24), outline), ((236, 236, 236), 0)):
                mask = Image.new("L", image.size)
                ImageDraw.Draw(mask).text(place, text, 255, self.font, stroke_width=stroke)
                box = mask.getbbox()
                self.inks.append((colour, box, mask.crop(box)))
        for ink in self.inks:
            image.paste(*ink)
        return image


def _expose(place: StaticScene, cast, t: float, *, lit: bool):
    """Paint one moment, far to near: colours and actor numbers on the canvas, lamps' glow at half its size or None, and the
    box outside which nothing differs from `still`; the colours hold only inside it."""
    visible, parts, shadows = [], list(place.cutouts), []
    for number, member in enumerate(cast.members, 1):
        if state := member.at(t):
            sketch = scenes.Sketch(place.camera, number)
            _act(sketch, member, state, t, lit=lit)
            parts.append((state[1], sketch.strokes))
            shadows += sketch.strokes
            visible.append((member.kind, state))
    if cast.blows:
        sketch = scenes.Sketch(place.camera)
        objects.cracks(sketch, at=place.layout.machine, blows=sum(blow < t for blow in cast.blows))
        if cast.sparks:
            objects.splinters(sketch, at=place.layout.machine, ages=[t - blow for blow in cast.blows if 0 <= t - blow < 0.5])
        parts.append((place.layout.machine[1] - 0.01, sketch.strokes))
    shadow, dark = _shadow(place.camera, place.light, shadows)
    strokes = [stroke for part in parts if len(part) == 2 for stroke in part[1]]
    glow = _glow(place.camera, visible) if lit and any(kind in objects.BODIES for kind, _ in visible) else None
    smokes = cast.burst and t >= cast.burst[0]
    changed = (0, 0, *place.lit.size) if glow or smokes else _around(scenes.extent(place.camera, strokes), dark)
    colours = place.lit.copy()
    if dark:
        colours.paste(place.shaded.crop(dark), dark, shadow)
    waiting = []
    for _, *part in sorted(parts, key=lambda part: -part[0]):
        if len(part) == 1:
            waiting += part[0]
            continue
        corner, image, outline = part
        if not _overlap(changed, (*corner, corner[0] + image.width, corner[1] + image.height)):
            continue
        scenes.paint(place.camera, waiting, colours)
        colours.paste(image, corner, outline)
        waiting = []
    scenes.paint(place.camera, waiting, colours)
    ids = colours.getchannel("A")
    if smokes:
        colours = objects.smoke(place.camera, colours.convert("RGB"), cast.burst[1:], t - cast.burst[0])
    return colours, ids, glow, changed


def _act(sketch, member, state, t, *, lit):
    x, z, heading, act, since, phase, speed = state
    if member.kind == "person":
        look = replace(member.look, carries="") if member.drops_at <= t < member.takes_at else member.look
        people.person(sketch, look, people.pose_of(act, since, phase, speed), (x, z), heading)
    elif member.kind == "bicycle":
        people.bicycle(sketch, member.look, (x, z), heading, phase)
    elif member.kind in objects.BODIES:
        crumple = float(np.clip((t - member.folds_at) / 0.15, 0, 1))
        objects.vehicle(sketch, member.kind, member.look, (x, z), heading, crumple=crumple, lit=lit)
    else:
        tall, colour = (0.55, (46, 50, 60)) if member.kind == "case" else (0.28, (58, 42, 34))
        objects.bag(sketch, np.array([x, 0.02, z]), np.array([1.0, 0, 0.2]), 0.42, tall_m=tall, colour=colour)


def _glow(camera, visible):
    """Shine of head lamps, at half the canvas size."""
    image, sketch = Image.new("L", (camera.width // 2, camera.height // 2)), scenes.Sketch(camera)
    for kind, (x, z, heading, *_) in visible:
        if kind in objects.BODIES:
            for lamp in objects.lamps(kind, (x, z), heading):
                sketch.limbs([lamp], (0.55,), 0)
    scenes.paint(camera, sketch.strokes, image, ink=150, scale=0.5)
    return image.filter(ImageFilter.BoxBlur(camera.height / 130))

"""Pictures of the bazaar: a silhouette per category, a colour, and a texture per material."""

from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from metaguide.data.bazaar_words import COLOURS

# A drawing is a list of strokes, separated by semicolons, on a 32-by-32 canvas; the last is on top.
# A stroke is a tone (b body, d dark, l light), a shape, and numbers: r x0 y0 x1 y1 (a rectangle),
# e x y rx ry (an ellipse), p x y x y ... (a polygon), s x0 y0 x1 y1 width (a straight line).
_DRAWINGS = """
shirt: b p 9 6 14 5 18 5 23 6 30 13 26 17 23 14 23 28 9 28 9 14 6 17 2 13; l p 13 5 19 5 16 10
jacket: b p 9 5 23 5 29 12 29 25 25 25 24 14 24 29 8 29 8 14 7 25 3 25 3 12; d r 15 6 17 29;
  l e 12 20 1 1; l e 20 20 1 1
trousers: b p 9 4 23 4 26 29 19 29 16 12 13 29 6 29; d r 9 4 23 7
dress: b p 11 3 13 7 19 7 21 3 22 12 28 29 4 29 10 12; l r 10 12 22 14
socks: b p 6 4 13 4 13 17 19 23 16 28 11 27 6 20; b p 17 3 24 3 24 16 29 21 27 25 23 25 17 19;
  l r 6 4 13 7; l r 17 3 24 6
hat: b e 16 18 8 10; b e 16 23 14 4; d r 8 18 24 21
boots: b p 9 3 18 3 18 19 28 23 28 27 9 27; d r 9 26 28 29; l s 18 10 22 10 1; l s 18 14 22 14 1
scarf: b e 16 9 10 6; l e 16 9 5 2; b p 14 12 21 12 25 29 18 29; b p 9 12 16 12 12 27 6 26
washing machine: b r 6 3 26 29; l e 16 18 8 8; d e 16 18 5 5; d r 8 5 16 8; l e 22 6 2 2
refrigerator: b r 8 2 24 30; d r 8 11 24 12; l r 21 5 23 9; l r 21 15 23 22
vacuum cleaner: b e 11 23 9 6; d e 6 27 3 3; d s 15 20 22 5 2; d s 22 5 28 27 2; b r 24 26 31 29
water heater: b r 3 9 29 21; b e 4 15 3 6; b e 28 15 3 6; l e 23 15 3 3; d s 9 21 9 28 2;
  d s 14 21 14 28 2
microwave oven: b r 2 8 30 25; d r 5 11 20 22; l r 23 11 27 13; l r 23 16 27 18; l r 23 20 27 22
electric kettle: b p 9 9 21 9 24 28 6 28; b p 9 12 3 9 8 19; d s 22 10 28 14 2; d s 28 14 25 24 2;
  d r 11 6 19 9; l r 10 16 13 24
air conditioner: b r 2 8 30 18; d r 4 15 28 17; l s 9 20 7 26 1; l s 16 20 16 27 1;
  l s 23 20 25 26 1
ceiling fan: d r 15 2 17 12; b p 16 13 2 8 3 14; b p 16 13 30 8 29 14; b p 16 13 11 29 20 29;
  l e 16 13 3 3
smartphone: d r 9 2 23 30; b r 10 5 22 26; l r 14 27 18 29; l r 12 8 20 12
flip phone: d r 10 2 22 14; l r 12 4 20 12; b r 10 16 22 30; l r 12 18 14 20; l r 15 18 17 20;
  l r 18 18 20 20; l r 12 23 20 25
phone case: b r 8 2 24 30; l e 12 7 2 2; l e 12 12 2 2; d r 16 5 20 9; l r 11 17 21 27
charger: b r 8 10 24 24; d r 11 4 13 10; d r 19 4 21 10; d s 16 24 16 30 2;
  l p 17 12 13 18 16 18 15 22 20 16 16 16
power bank: b r 4 10 28 22; d r 25 14 28 18; l e 8 16 1 1; l e 12 16 1 1; l e 16 16 1 1;
  l e 20 16 1 1
earphones: d s 7 16 10 6 2; d s 10 6 22 6 2; d s 22 6 25 16 2; b e 7 20 4 6; b e 25 20 4 6;
  l e 7 20 2 3; l e 25 20 2 3
screen protector: l r 7 2 21 28; b r 9 5 19 25; d p 21 12 27 6 29 26 21 28
selfie stick: d s 6 29 20 9 3; b r 15 2 28 12; l r 17 4 26 10; b e 7 28 3 3
novel: b r 7 3 25 29; d r 7 3 10 29; l r 13 8 22 10; l r 13 12 20 13
cookbook: b r 7 3 25 29; d r 7 3 10 29; l e 17 17 5 5; d e 17 17 3 3; l s 24 10 24 24 1
textbook: b p 2 7 16 10 16 28 2 25; b p 30 7 16 10 16 28 30 25; l s 5 12 13 14 1; l s 5 17 13 19 1;
  l s 19 14 27 12 1; l s 19 19 27 17 1
comic: b r 7 3 25 29; l r 9 5 15 13; d r 17 5 23 13; d r 9 15 15 27; l e 20 20 3 4
atlas: b r 4 5 28 27; l e 16 16 9 9; b s 16 7 16 25 1; b s 7 16 25 16 1; d e 13 13 3 3;
  d e 20 19 3 2
dictionary: b r 8 4 24 28; d r 8 4 12 28; l r 24 6 28 9; d r 24 11 28 14; l r 24 16 28 19;
  d r 24 21 28 24
biography: b r 7 3 25 29; d r 7 3 10 29; l e 17 12 3 4; l p 12 24 14 18 20 18 22 24
poetry: b r 9 6 23 28; l p 12 24 20 9 22 12 15 24; d s 12 25 21 10 1; d r 9 6 11 28
coffee: b r 6 12 22 27; d e 14 12 8 3; b e 23 18 4 5; l e 23 18 2 3; l s 11 3 12 8 1;
  l s 17 3 16 8 1
tea: b p 3 14 26 14 22 27 8 27; l r 3 14 26 16; d s 20 14 25 24 1; l r 22 23 28 29
honey: b e 16 19 10 9; d r 9 6 23 10; l r 10 16 22 23; d s 16 3 27 10 1
rice: b p 6 8 26 8 29 29 3 29; d p 9 3 23 3 26 8 6 8; l e 16 19 6 4
olive oil: b p 12 12 20 12 23 17 23 30 9 30 9 17; d r 14 2 18 12; l r 10 20 22 26; d e 16 23 2 2
chocolate: b r 6 4 26 28; d s 6 12 26 12 1; d s 6 20 26 20 1; d s 13 4 13 28 1; d s 20 4 20 28 1;
  l r 6 24 26 28
cheese: b p 2 20 20 7 30 13 30 27 2 27; l p 2 20 20 7 30 13 30 15; d e 10 23 2 2; d e 19 21 3 2;
  d e 26 24 1 2
noodles: b p 3 16 29 16 23 28 9 28; l e 16 15 11 4; d s 10 2 20 14 1; d s 14 2 24 14 1;
  d s 9 15 23 15 1
sofa: b r 4 8 28 20; b r 2 14 8 26; b r 24 14 30 26; l r 8 17 24 22; d r 5 26 8 29; d r 24 26 27 29
desk: b r 2 10 30 14; d r 3 14 6 29; d r 26 14 29 29; b r 18 14 26 21; l e 22 17 1 1
bookshelf: d r 6 2 26 30; b r 8 4 24 10; b r 8 12 24 19; b r 8 21 24 28; l r 9 5 12 10;
  l r 15 13 18 19; l r 20 22 22 28
bed: b r 2 6 5 28; b r 27 14 30 28; l r 5 16 28 20; b r 5 20 28 25; l e 9 15 4 2; d r 5 25 28 26
wardrobe: b r 4 2 28 28; d r 15 2 17 28; l e 13 15 1 2; l e 19 15 1 2; d r 6 28 9 31;
  d r 23 28 26 31
dining table: b e 16 12 14 5; d p 14 16 18 16 20 27 12 27; d r 9 26 23 29; l e 16 11 9 2
office chair: b r 9 2 23 14; b r 7 17 25 21; d r 15 14 17 27; d s 7 29 25 29 2; d e 8 30 1 1;
  d e 24 30 1 1
baseline lamp: b p 10 3 22 3 27 13 5 13; d r 15 13 17 27; d e 16 28 7 2; l p 12 5 15 5 12 12 8 12
doll: l e 16 8 5 5; d p 10 7 16 2 22 7 22 12 20 6 12 6 10 12; b p 13 13 19 13 26 26 6 26;
  l r 12 26 14 30; l r 18 26 20 30
puzzle: b r 5 9 23 27; b e 23 18 4 4; b e 14 8 4 4; l e 5 18 3 3; d e 14 27 3 3
kite: b p 18 2 29 13 18 22 8 12; l p 18 2 18 22 8 12; d s 18 22 9 26 1; d s 9 26 5 30 1;
  l e 10 26 2 1
toy car: b p 2 18 8 18 12 10 22 10 26 18 30 18 30 24 2 24; l p 10 17 13 12 21 12 23 17;
  d e 9 25 4 4; d e 23 25 4 4
teddy bear: b e 9 5 3 3; b e 23 5 3 3; b e 16 10 7 7; b e 16 23 9 7; l e 16 12 3 3; d e 13 9 1 1;
  d e 19 9 1 1; l e 16 23 5 4
building blocks: b r 3 17 15 29; d r 17 17 29 29; l r 10 5 22 17; b r 12 3 15 5; b r 17 3 20 5
board game: b r 4 4 28 28; l r 4 4 12 12; l r 20 4 28 12; l r 12 12 20 20; l r 4 20 12 28;
  l r 20 20 28 28; d e 16 16 3 3
robot: b r 8 4 24 13; l e 12 8 2 2; l e 20 8 2 2; d s 16 1 16 4 1; b r 9 15 23 25; d r 4 15 7 23;
  d r 25 15 28 23; d r 11 25 14 30; d r 18 25 21 30
lipstick: d r 11 16 21 30; l r 12 13 20 17; b p 13 13 13 5 19 2 19 13
shampoo: b r 9 10 23 30; d r 14 5 18 10; d r 10 3 18 5; l r 11 15 21 25
face cream: b r 5 14 27 28; l e 16 14 11 3; d r 5 8 27 13
perfume: b r 8 13 24 29; d r 13 4 19 10; l r 14 10 18 13; l p 10 15 16 15 10 25
nail polish: d p 13 2 19 2 20 15 12 15; b e 16 23 9 7; l e 13 21 2 3
sunscreen: b p 8 4 24 4 21 25 11 25; d r 12 25 20 30; l e 16 13 4 4; l s 16 6 16 20 1;
  l s 9 13 23 13 1
mascara: b s 5 27 15 17 5; d s 15 17 20 12 2; l s 20 12 28 4 4
soap: b e 8 20 5 7; b e 24 20 5 7; b r 8 13 24 27; l e 16 20 7 3; l e 24 7 3 3; l e 18 5 2 2
bicycle: d e 8 21 7 7; l e 8 21 5 5; d e 24 21 7 7; l e 24 21 5 5; b s 8 21 13 10 2;
  b s 13 10 22 10 2; b s 22 10 24 21 2; b s 13 10 17 21 2; b s 8 21 17 21 2
tennis racket: b e 18 11 10 9; l e 18 11 7 6; d s 12 11 24 11 1; d s 18 5 18 17 1; d s 11 18 4 29 3
football: b e 16 16 13 13; d p 16 10 21 14 19 20 13 20 11 14; l s 16 3 16 10 1; l s 21 14 28 12 1;
  l s 11 14 4 12 1; l s 19 20 23 27 1; l s 13 20 9 27 1
tent: b p 16 4 30 27 2 27; d p 16 10 21 27 11 27; l s 16 4 8 27 1
skis: b s 8 29 12 4 3; b s 19 29 23 4 3; d r 8 15 13 19; d r 19 15 24 19; l e 12 4 2 2; l e 23 4 2 2
dumbbell: b r 3 9 9 23; b r 23 9 29 23; d r 9 14 23 18; l r 1 12 3 20; l r 29 12 31 20
yoga mat: b e 7 22 5 6; b r 7 16 26 28; b e 26 22 4 6; l e 7 22 3 4; d e 7 22 1 2; d r 14 16 16 28;
  d r 21 16 23 28
helmet: b e 16 17 13 12; d r 3 20 29 24; l p 6 12 10 8 12 17 8 18; l p 15 6 18 6 18 16 15 16;
  d s 10 23 16 30 1
laptop: d r 6 4 26 20; b r 8 6 24 18; l p 6 20 26 20 31 28 1 28; d r 9 22 23 24
keyboard: b r 1 11 31 23; l r 3 13 6 15; l r 8 13 11 15; l r 13 13 16 15; l r 18 13 21 15;
  l r 23 13 29 15; l r 3 17 6 19; l r 23 17 29 19; d r 8 18 21 21
mouse: b e 16 18 8 11; d s 16 7 16 16 1; l r 15 9 17 14; d s 16 7 20 2 1
monitor: d r 2 4 30 22; b r 4 6 28 20; d r 14 22 18 27; d r 9 27 23 29; l p 6 8 12 8 6 16
printer: b r 3 12 29 24; l r 8 3 24 12; l r 8 21 24 29; d r 8 20 24 21; d e 25 15 1 1
router: b r 4 19 28 27; d s 8 19 5 4 2; d s 24 19 27 4 2; d s 16 19 16 5 2; l e 9 23 1 1;
  l e 13 23 1 1; l e 17 23 1 1
webcam: b e 16 13 9 9; d e 16 13 5 5; l e 16 13 2 2; d p 13 22 19 22 23 29 9 29
hard drive: b r 6 3 26 29; l e 16 13 8 8; d e 16 13 2 2; d s 23 24 17 15 2; l r 9 25 15 27
"""

_SIDE = 32
_SCALE = 2
_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def _outline(shape: str, numbers: list[float]) -> np.ndarray:
    if shape == "e":
        x, y, rx, ry = numbers
        return _CIRCLE * (rx, ry) + (x, y)
    if shape == "r":
        x0, y0, x1, y1 = numbers
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    if shape == "s":
        x0, y0, x1, y1, width = numbers
        side = np.array([y0 - y1, x1 - x0]) * (width / 2 / np.hypot(x1 - x0, y1 - y0))
        start, end = np.array([x0, y0]), np.array([x1, y1])
        return np.stack([start + side, end + side, end - side, start - side])
    return np.array(numbers).reshape(-1, 2)


@cache
def _drawings() -> dict[str, tuple[tuple[str, np.ndarray], ...]]:
    drawings = {}
    for line in _DRAWINGS.strip().replace("\n  ", " ").splitlines():
        name, _, strokes = line.partition(":")
        parts = [stroke.split() for stroke in strokes.split(";")]
        drawings[name] = tuple(
            (tone, _outline(shape, [float(number) for number in numbers]))
            for tone, shape, *numbers in parts
        )
    return drawings


def _textures() -> dict[str, np.ndarray]:
    """Return the brightness of each material over the canvas, around 1."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    speckle = np.random.default_rng(0).normal(size=(_SIDE, _SIDE))
    return {
        "cotton": 1 + 0.12 * ((x + y) % 2),
        "wool": 1 + 0.15 * speckle,
        "leather": 0.9 + 0.15 * np.sin(x * 0.9) * np.sin(y * 0.7 + x * 0.3),
        "wood": 1 + 0.15 * np.sin(y * 1.3 + 0.6 * np.sin(x * 0.4)),
        "steel": 0.85 + 0.4 * np.exp(-(((x - y) / 5.0) ** 2)),
        "glass": 1.15 + 0.25 * (((x + y) % 16) < 3),
        "plastic": 1.1 - 0.012 * y,
        "paper": 1 + 0.05 * speckle + 0.08 * (y % 4 == 0),
    }


def render(
    category: str, colour: str, material: str, noise: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "32 32 3"]:
    """Draw one product.

    Args:
        category: the category, which sets the silhouette.
        colour: one of `COLOURS`.
        material: one of `MATERIALS`, which sets the texture.
        noise: strength of the randomness in [0, 1]. 0 draws a category the same each time, on
            white; 1 shifts, rotates, scales and dims it at random, puts it on a random background,
            hides a part of it behind a block, and adds Gaussian noise.
        rng: source of randomness.

    Returns:
        The picture, RGB.
    """
    turn, grow = noise * rng.normal(0, 0.25), np.exp(noise * rng.normal(-0.2, 0.2))
    stretch = np.exp(noise * rng.normal(0, 0.15, 2))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    centre = _SIDE / 2 + noise * rng.normal(0, 2.5, 2)
    flip = (-1.0 if noise * rng.random() > 0.3 else 1.0, 1.0)
    matrix = np.diag(flip) @ np.diag(stretch * grow) @ rotation * _SCALE

    body = np.array(COLOURS[colour][1], float) * np.exp(noise * rng.normal(0, 0.25))
    body = np.clip(body + noise * rng.normal(0, 20, 3), 0, 255)
    tones = {"b": body, "d": body * 0.5, "l": body * 0.4 + 150}
    paints = {tone: (*(int(v) for v in np.clip(c, 0, 255)), 255) for tone, c in tones.items()}
    canvas = Image.new("RGBA", (_SIDE * _SCALE, _SIDE * _SCALE))
    draw = ImageDraw.Draw(canvas)
    for tone, points in _drawings()[category]:
        moved = (points - _SIDE / 2) @ matrix + centre * _SCALE
        draw.polygon(moved.ravel().tolist(), fill=paints[tone])
    pixels = np.asarray(canvas.reduce(_SCALE), float)
    alpha = pixels[..., 3:] / 255
    figure = pixels[..., :3] * _TEXTURES[material][..., None]

    top, bottom = 255 - noise * rng.uniform(0, 150, (2, 3))
    ramp = np.linspace(0, 1, _SIDE)[:, None, None]
    ground = np.broadcast_to(top * (1 - ramp) + bottom * ramp, figure.shape)
    picture = figure * alpha + ground * (1 - alpha)
    if rng.random() < noise:
        x, y = rng.integers(0, _SIDE - 8, 2)
        width, height = rng.integers(5, 12, 2)
        picture[y : y + height, x : x + width] = rng.uniform(60, 240, 3)
    picture = picture + noise * rng.normal(0, 18, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


_TEXTURES = _textures()

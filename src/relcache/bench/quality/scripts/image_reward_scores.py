"""Scores pictures by ImageReward, in an environment of its own: a request as JSON on each line, a reply for each.

Knows nothing of relcache. A request has `samples`, a .npz file with `images` uint8 (n, channels, height, width),
`prompts`, one for each, and `device`; a reply is a list of numbers.
"""

import json
import os
import sys

replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever the package prints is no reply

import ImageReward  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

model = None
for line in sys.stdin:
    request = json.loads(line)
    if model is None:
        model = ImageReward.load("ImageReward-v1.0", device=request["device"])
    with np.load(request["samples"]) as arrays:
        pictures = [Image.fromarray(image.transpose(1, 2, 0)).convert("RGB") for image in arrays["images"]]
    scores = [float(model.score(prompt, picture)) for prompt, picture in zip(request["prompts"], pictures)]  # noqa: B905
    print(json.dumps(scores), file=replies, flush=True)

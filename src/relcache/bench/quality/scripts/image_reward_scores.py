"""Score pictures by ImageReward, in an environment without relcache: read JSON requests by line, reply to each.

A request has `samples`, an .npz file with `images` uint8 (n, channels, height, width), n `prompts`, and `device`. The
reply is a list of n numbers.
"""

import json
import os
import sys

replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # keep the package's output apart from the replies

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

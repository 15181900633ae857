"""Scores clips by VBench, in an environment of its own: a request as JSON on each line, a reply for each.

Knows nothing of relcache. A request has `samples`, a .npz file with `images` uint8 (n, frames, channels, height,
width), `prompts`, one for each, all of VBench's own list, `dimensions` and `device`; a reply is a list for each clip
with a number for each dimension, null where VBench does not judge that prompt by it.
"""

import json
import os
import pathlib
import sys
import tempfile

replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever the package prints is no reply

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import vbench  # noqa: E402

KNOWN = json.loads((pathlib.Path(vbench.__file__).parent / "VBench_full_info.json").read_text())


def write(path, frames):
    height, width = frames.shape[-2:]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 8, (width, height))
    for frame in frames:
        video.write(np.ascontiguousarray(frame.transpose(1, 2, 0)[..., ::-1]))
    video.release()


for line in sys.stdin:
    request = json.loads(line)
    prompts, dimensions = request["prompts"], request["dimensions"]
    scores = [[None] * len(dimensions) for _ in prompts]
    with tempfile.TemporaryDirectory() as folder, np.load(request["samples"]) as arrays:
        folder = pathlib.Path(folder)
        (folder / "clips").mkdir()
        names = [f"{prompt}-{prompts[:place].count(prompt)}" for place, prompt in enumerate(prompts)]
        for name, frames in zip(names, arrays["images"]):  # noqa: B905
            write(folder / "clips" / f"{name}.mp4", frames)
        for place, dimension in enumerate(dimensions):
            judged = [entry for entry in KNOWN if entry["prompt_en"] in prompts and dimension in entry["dimension"]]
            if not judged:
                continue
            (folder / "info.json").write_text(json.dumps(judged))
            judge = vbench.VBench(request["device"], str(folder / "info.json"), str(folder / "out"))
            judge.evaluate(str(folder / "clips"), dimension, dimension_list=[dimension])
            found = json.loads((folder / "out" / f"{dimension}_eval_results.json").read_text())[dimension][1]
            scale = 0.01 if dimension == "imaging_quality" else 1.0  # of which VBench's mean is of hundredths
            for clip in found:
                name = pathlib.Path(clip["video_path"]).name[: -len(".mp4")]
                scores[names.index(name)][place] = float(clip["video_results"]) * scale
    print(json.dumps(scores), file=replies, flush=True)

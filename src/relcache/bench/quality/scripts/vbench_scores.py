"""Score clips by VBench, in an environment without relcache: read JSON requests by line, reply to each.

A request has `samples`, an .npz file with `images` uint8 (n, frames, channels, height, width). It has n `prompts` from
VBench's own list, `dimensions` and `device`. The reply has a list for each clip with a number for each dimension, null
if VBench does not judge that prompt by it.
"""

import json
import os
import pathlib
import sys
import tempfile

replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # keep the package's output apart from the replies

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import vbench  # noqa: E402

KNOWN = json.loads((pathlib.Path(vbench.__file__).parent / "VBench_full_info.json").read_text())


def write_clip(path, frames):
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
        names = [f"{prompt}-{prompts[:index].count(prompt)}" for index, prompt in enumerate(prompts)]
        for name, frames in zip(names, arrays["images"]):  # noqa: B905
            write_clip(folder / "clips" / f"{name}.mp4", frames)
        for index, dimension in enumerate(dimensions):
            judged = [entry for entry in KNOWN if entry["prompt_en"] in prompts and dimension in entry["dimension"]]
            if not judged:
                continue
            (folder / "info.json").write_text(json.dumps(judged))
            judge = vbench.VBench(request["device"], str(folder / "info.json"), str(folder / "out"))
            judge.evaluate(str(folder / "clips"), dimension, dimension_list=[dimension])
            found = json.loads((folder / "out" / f"{dimension}_eval_results.json").read_text())[dimension][1]
            scale = 0.01 if dimension == "imaging_quality" else 1.0  # VBench's mean divides it by 100 as well
            for clip in found:
                name = pathlib.Path(clip["video_path"]).name[: -len(".mp4")]
                scores[names.index(name)][index] = float(clip["video_results"]) * scale
    print(json.dumps(scores), file=replies, flush=True)

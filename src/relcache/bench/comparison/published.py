"""The numbers of the RFC paper's tables (Son et al., ICLR 2026), to print beside measured ones.

Their samples, hardware and software differ from any run here; equal protocols make them comparable, not equal.
"""

from __future__ import annotations

from collections.abc import Mapping

COLUMNS = {
    "class-conditional": ("nfc", "tflops", "seconds", "fid", "sfid", "fid2fc", "sfid2fc", "is"),
    "text-to-image": ("nfc", "tflops_linear", "seconds", "psnr", "ssim", "lpips", "image_reward", "clip"),
    "text-to-video": ("nfc", "tflops_linear", "seconds", "psnr", "ssim", "lpips", "vbench"),
}

_ROWS: dict[str, dict[tuple[str, int], tuple[float | None, ...]]] = {
    "class-conditional": {
        ("full", 50): (50, 23.74, 7.61, 2.32, 4.32, None, None, 241.25),
        ("fora", 14): (14, 6.66, 2.37, 4.33, 7.38, 1.90, 6.32, 215.33),
        ("taylorseer-2", 14): (14, 6.66, 2.84, 2.55, 5.30, 0.44, 2.17, 232.26),
        ("rfc-2", 14): (14, 6.67, 2.86, 2.52, 4.60, 0.30, 1.33, 231.00),
        ("fora", 11): (11, 5.24, 2.03, 6.12, 10.51, 3.57, 10.19, 196.04),
        ("taylorseer-2", 11): (11, 5.24, 2.52, 2.70, 5.45, 0.56, 2.74, 228.76),
        ("rfc-2", 11): (11, 5.24, 2.52, 2.71, 4.80, 0.48, 2.14, 227.72),
        ("fora", 10): (10, 4.76, 1.82, 8.12, 12.94, 5.32, 12.87, 179.11),
        ("taylorseer-2", 10): (10, 4.76, 2.27, 3.10, 6.47, 1.00, 4.63, 222.85),
        ("rfc-2", 10): (10, 4.78, 2.46, 2.75, 5.02, 0.54, 2.43, 226.93),
        ("taylorseer-2", 8): (8, 3.82, 2.02, 3.46, 6.97, 1.30, 5.61, 217.18),
        ("rfc-2", 8): (8, 3.83, 2.15, 3.12, 5.07, 0.81, 3.10, 219.20),
        ("taylorseer-2", 7): (7, 3.35, 1.89, 4.90, 7.92, 2.33, 7.35, 198.46),
        ("rfc-2", 7): (7, 3.37, 1.99, 3.40, 5.21, 1.03, 3.66, 215.39),
        ("taylorseer-1", 14): (14, None, None, 2.65, 5.60, 0.57, 2.77, None),
        ("rfe-1", 14): (14, None, None, 2.52, 5.18, 0.43, 2.02, None),
        ("rcs-1", 14): (14, None, None, 2.52, 4.76, 0.36, 1.88, None),
        ("rfc-1", 14): (14, None, None, 2.51, 4.66, 0.31, 1.41, None),
        ("taylorseer-1", 11): (11, None, None, 2.87, 5.85, 0.73, 3.53, None),
        ("rfe-1", 11): (11, None, None, 2.69, 5.22, 0.55, 2.55, None),
        ("rcs-1", 11): (11, None, None, 2.77, 5.21, 0.62, 3.09, None),
        ("rfc-1", 11): (11, None, None, 2.71, 4.88, 0.51, 2.30, None),
        ("linear-0.8", 14): (14, None, None, None, None, 0.73, 3.36, None),
        ("linear-1.0", 14): (14, None, None, None, None, 0.57, 2.77, None),
        ("linear-1.2", 14): (14, None, None, None, None, 0.52, 2.51, None),
    },
    "text-to-image": {
        ("full", 50): (50, 2813.5, 26.21, None, None, None, 0.9655, 17.07),
        ("fora", 17): (17, 957.3, 10.49, 17.50, 0.7236, 0.4209, 0.9111, 16.95),
        ("taylorseer-1", 14): (14, 788.6, 8.86, 19.57, 0.7695, 0.3226, 0.9204, 17.07),
        ("taylorseer-2", 14): (14, 788.6, 8.99, 19.77, 0.7706, 0.3175, 0.9407, 17.05),
        ("rfc-1", 14): (14.02, 789.8, 9.15, 20.27, 0.7905, 0.2934, 0.9448, 17.03),
        ("rfc-2", 14): (13.80, 777.4, 9.36, 20.35, 0.7930, 0.2952, 0.9499, 17.04),
        ("taylorseer-1", 8): (8, 451.1, 6.38, 16.13, 0.6736, 0.5261, 0.7602, 17.08),
        ("taylorseer-2", 8): (8, 451.1, 6.80, 16.55, 0.6563, 0.5328, 0.7996, 17.05),
        ("rfc-1", 8): (8.00, 451.2, 6.41, 16.80, 0.6979, 0.4645, 0.9142, 17.02),
        ("rfc-2", 8): (8.03, 452.9, 6.85, 16.92, 0.6936, 0.4708, 0.9189, 16.96),
    },
    "text-to-video": {
        ("full", 50): (50, 7520, 263.5, None, None, None, 81.40),
        ("fora", 9): (9, 1359, 55.3, 15.52, 0.435, 0.274, 78.51),
        ("taylorseer-1", 9): (9, 1359, 55.9, 15.53, 0.461, 0.245, 79.52),
        ("rfc-1", 9): (8.96, 1355, 57.8, 18.54, 0.635, 0.133, 80.83),
        ("fora", 7): (7, 1058, 48.3, 14.89, 0.411, 0.296, 77.50),
        ("taylorseer-1", 7): (7, 1058, 48.7, 15.20, 0.441, 0.262, 79.59),
        ("rfc-1", 7): (7.09, 1073, 49.7, 18.25, 0.616, 0.144, 80.49),
    },
}


def published(benchmark: str, method: str, nfc: int) -> Mapping[str, float]:
    """Return the paper's numbers for a method at a number of full steps; empty if its table has no such row."""
    row = _ROWS.get(benchmark, {}).get((method, nfc))
    named = zip(COLUMNS[benchmark], row, strict=True) if row else ()
    return {column: value for column, value in named if value is not None}

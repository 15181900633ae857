"""Published methods, written from their papers' equations, a file for each."""

from relcache_rivals.equations.base import Equation
from relcache_rivals.equations.dpcache import DPCache
from relcache_rivals.equations.hicache import HiCache
from relcache_rivals.equations.meancache import MeanCache
from relcache_rivals.equations.spectrum import Spectrum
from relcache_rivals.equations.teacache import TeaCache

EQUATIONS: tuple[Equation, ...] = (
    Spectrum("spectrum", "Spectrum"),
    Spectrum("spectrum-mixed", "Spectrum, half a line", 0.5),
    HiCache("hicache", "HiCache, m=2"),
    DPCache("dpcache", "DPCache"),
    MeanCache("meancache", "MeanCache"),
    TeaCache("teacache", "TeaCache"),
)
"""Every published method that is written from its equations."""

__all__ = ["EQUATIONS", "Equation"]

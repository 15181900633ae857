"""The alternatives to relcache: their base class, the solvers, and `registry`, which has them all."""

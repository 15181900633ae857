"""The alternatives to relcache, a file for each; `registry` has them all."""

//! Weights by formula, so that golden files need not store any: the same numbers in Rust and in Python.

//! The protocol of a topology, every interleaving of small scenes. Built with `--cfg loom` only.
#![cfg(loom)]

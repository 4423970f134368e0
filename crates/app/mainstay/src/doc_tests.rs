//! Every snippet of the documents, compiled and run.

#[doc = include_str!("../../../../README.md")]
struct Readme;

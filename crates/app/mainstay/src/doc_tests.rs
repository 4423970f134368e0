//! Every snippet of the documents, compiled and run.

#[doc = include_str!("../../../../README.md")]
struct Readme;

#[doc = include_str!("../../../../docs/saga.md")]
struct Sagas;
#[doc = include_str!("../../../../docs/partition.md")]
struct Placement;
#[doc = include_str!("../../../../DESIGN.md")]
struct Design;
#[doc = include_str!("../../../../COMPARE.md")]
struct Compare;

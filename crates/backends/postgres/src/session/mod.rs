//! x
pub struct AdvisoryKey; pub struct KeyError; pub struct KeyProfile; pub struct PostgresSessions;

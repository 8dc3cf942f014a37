//! What a run found: the figures, and the three forms that they are shown in.

pub(crate) mod chart;
pub(crate) mod json;
pub(crate) mod summary;
pub(crate) mod table;

//! What the property test and its reference share.

pub(crate) mod nasty;
pub(crate) mod pods;
pub(crate) mod reference;
pub(crate) mod writer;

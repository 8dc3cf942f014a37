//! Redirect rules.
